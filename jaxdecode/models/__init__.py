"""Model definitions. The only package that imports flax."""
