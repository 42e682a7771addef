"""Attention of tree nodes or canvas rows over a cache and over themselves."""
