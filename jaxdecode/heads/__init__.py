"""Trained parts of methods: what they are made of, one file per kind.

A file has `Shape`, a frozen keyword-only dataclass of plain values that decides, with the target's
config, the size of every parameter, and whose defaults fit any target; `init(shape, config, key,
target)`, the parameters before training, with names and nesting that checkpoints keep; and the
functions that training and decoding share.
"""
