"""Rounding of weights and of what products read, to measure what few bits do to a model.

Values are rounded to the levels of an integer format and stay floats: what comes out is what
integer products would give, at no gain in speed or memory. What a product does to its input stands
beside its kernel, so the forward pass takes it without knowing of it.

A rotation R that is applied to the input and to the kernel leaves the product as it is,
`(x R)(R^T W) = x W`, and spreads single large values over all channels (arXiv:2404.00456).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdecode.errors import UnsupportedError

# Where it stands among the leaves of a product.
NAME = "input"
# Smaller rotations spread too little to be worth a name.
_SMALLEST_ROTATION = 8


def read(how: Mapping[str, Any], x: Float[Array, "... I"]) -> Float[Array, "... I"]:
    """What a product reads in place of `x`.

    Args:
        how: any of "scale" (`[I]` factors), "rotation" (as `rotation` gives it) and "levels"
            (the largest integer), applied in this order.
        x: its input.
    """
    wide = x.astype(jnp.float32)
    if "scale" in how:
        wide = wide * how["scale"]
    if "rotation" in how:
        wide = rotate(wide, how["rotation"])
    if "levels" in how:
        wide = round_tokens(wide, how["levels"])
    return wide.astype(x.dtype)


def levels(bits: int) -> float:
    """The largest of the integers that are as many below 0 as above it."""
    return float(2 ** (bits - 1) - 1)


def round_tokens(x: Float[Array, "... I"], top: Any) -> Float[Array, "... I"]:
    """Each token to integers from -top to top times a scale of its own; a zero stays one."""
    step = jnp.maximum(jnp.abs(x).max(-1, keepdims=True), 1e-30) / top
    return jnp.round(x / step) * step


def round_weights(kernel: Float[Array, "I O"], bits: int, group: int) -> Float[Array, "I O"]:
    """Each run of `group` inputs of an output to `2^bits` even steps between its ends."""
    parts = kernel.reshape(-1, group, kernel.shape[-1])
    low, step = grid(parts, bits)
    return (low + jnp.clip(jnp.round((parts - low) / step), 0, 2**bits - 1) * step).reshape(
        kernel.shape
    )


def grid(parts: Any, bits: int) -> tuple[Any, Any]:
    """The lowest level and the step of every group (axis -2); 0 is one of the levels."""
    low = jnp.minimum(parts.min(-2, keepdims=True), 0.0)
    high = jnp.maximum(parts.max(-2, keepdims=True), 0.0)
    step = jnp.maximum(high - low, 1e-30) / (2**bits - 1)
    return jnp.round(low / step) * step, step


def rotation(width: int) -> Float[np.ndarray, "n n"]:
    """A Hadamard matrix with random signs, of the largest power of two that divides `width`.

    The signs are the same in every call; without them a constant input would end in one channel.

    Raises:
        UnsupportedError: that power is smaller than 8.
    """
    size = width & -width
    if size < _SMALLEST_ROTATION:
        raise UnsupportedError(
            f"a product of {width} inputs cannot be rotated: {width} is divided by no power of two "
            f"of at least {_SMALLEST_ROTATION}; leave hadamard out."
        )
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size)
    return (signs[:, None] * matrix / np.sqrt(size)).astype(np.float32)


def rotate(x: Float[Array, "... I"], matrix: Float[Array, "n n"]) -> Float[Array, "... I"]:
    """Each run of n channels times the matrix, in full float32."""
    runs = x.reshape(*x.shape[:-1], -1, matrix.shape[0])
    return jnp.matmul(runs, matrix, precision="highest").reshape(x.shape)
