"""Meshes, where arrays lie on them, and starting several hosts."""
