"""Noise that belongs to positions: keyed by (seed, row identity, absolute position, purpose).

The batch slot, the batch size and the step never enter, so a row draws the same noise alone, in any
batch, and under any drafter.
"""

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

# Purposes: one independent stream each.
TOKEN = 0


def row_key(seed: int, prompt: Sequence[int]) -> np.ndarray:
    """The base key of a row, `[2]` uint32, from its seed and its prompt.

    The prompt is the row's identity: rows of one batch get independent noise although they share
    a seed, and a row keeps its noise wherever it runs. Equal prompts with equal seeds give equal
    text; ask for different seeds to get different samples.
    """
    identity = hashlib.blake2b(
        int(seed).to_bytes(8, "little", signed=True) + np.asarray(prompt, "<i4").tobytes(),
        digest_size=8,
    ).digest()
    return np.frombuffer(identity, "<u4").astype(np.uint32)


def gumbel(
    key: UInt32[Array, "2"], position: Int[Array, ""], *, purpose: int, size: int
) -> Float[Array, "V"]:
    """Gumbel noise for the token at an absolute position of one row, float32."""
    folded = jax.random.fold_in(
        jax.random.fold_in(jax.random.wrap_key_data(key), position), purpose
    )
    return jax.random.gumbel(folded, (size,), jnp.float32)
