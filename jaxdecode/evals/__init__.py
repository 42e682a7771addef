"""Measurements and proofs: what methods emit, and with what law."""
