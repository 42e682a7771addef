"""Writing the accepted rows of a tree into the cache."""
