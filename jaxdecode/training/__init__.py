"""Training: drafters for any target, on the same forward pass that decoding uses."""
