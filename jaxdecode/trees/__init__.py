"""Shapes of proposals, and the one walk over them."""
