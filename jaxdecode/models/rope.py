"""Rotary position embedding (arXiv:2104.09864), halves rotated against each other."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdecode.models.config import Rope


def frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians per position of each of the head_dim / 2 pairs, as float32."""
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    freq = np.float32(1.0) / np.power(np.float32(rope.theta), exponent, dtype=np.float32)
    if rope.scaling == "linear":
        return freq / np.float32(rope.factor)
    if rope.scaling == "llama3":
        return _stretch_long_wavelengths(rope, freq)
    return freq


def _stretch_long_wavelengths(rope: Rope, freq: np.ndarray) -> np.ndarray:
    wavelength = 2 * np.pi / freq
    low = rope.original_max_length / rope.low_freq_factor
    high = rope.original_max_length / rope.high_freq_factor
    smooth = (rope.original_max_length / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * freq / rope.factor + smooth * freq
    stretched = np.where(wavelength > low, freq / rope.factor, blended)
    return np.where(wavelength < high, freq, stretched).astype(np.float32)


def angles(
    rope: Rope, head_dim: int, positions: Int[Array, "B T"]
) -> tuple[Float[Array, "B T d"], Float[Array, "B T d"]]:
    """Cosine and signed sine of every position, both of full head width."""
    freq = jnp.asarray(frequencies(rope, head_dim))
    angle = positions[..., None].astype(jnp.float32) * freq
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)


def rotate(
    x: Float[Array, "B T ... d"], cos: Float[Array, "B T d"], sin: Float[Array, "B T d"]
) -> Float[Array, "B T ... d"]:
    """Rotates each pair (i, i + d/2) of x by its position's angle."""
    shape = (*cos.shape[:2], *(1,) * (x.ndim - 3), cos.shape[-1])
    first, second = jnp.split(x, 2, axis=-1)
    swapped = jnp.concatenate([second, first], -1)
    return x * cos.reshape(shape) + swapped * sin.reshape(shape)
