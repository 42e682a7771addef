"""Checkpoints and tokenizers in and out."""
