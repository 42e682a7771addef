"""Pallas kernels for decoding on TPU and GPU; usable alone, needs only JAX."""
