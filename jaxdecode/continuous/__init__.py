"""Texts as vectors: a small loop of its own beside the loop over tokens, one file per method."""
