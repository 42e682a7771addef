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

# Purposes: one independent stream each. TOKEN noise decides what is emitted; a position is decided
# once. Draft tokens of a position are drawn again in every step that proposes them, so DRAFT and
# BLOCK noise is keyed by the position of the step's pending token, which no other step has. FILL
# and ORDER noise decides the token of an undecided slot and its turn; a slot may be drawn again in
# later steps, so the row's number of steps enters too. TEXT noise belongs to whole texts of a row,
# which have a number in place of a position. LATENT noise is added to vectors; a vector gets some
# in every step, so the step enters too.
TOKEN, DRAFT, BLOCK, FILL, ORDER, TEXT, LATENT = 0, 1, 2, 3, 4, 5, 6


def row_key(seed: int, prompt: Sequence[int], sample: int = 0) -> np.ndarray:
    """The base key of a row, `[2]` uint32, from its seed, its prompt and the sample's number.

    The prompt is the row's identity: rows of one batch get independent noise although they share
    a seed, and a row keeps its noise wherever it runs. Equal prompts with equal seeds give equal
    text; ask for several samples or different seeds to get different texts.
    """
    text = int(seed).to_bytes(8, "little", signed=True) + np.asarray(prompt, "<i4").tobytes()
    # Sample 0 is what a caller who asks for one gets.
    salt = int(sample).to_bytes(8, "little") if sample else b""
    identity = hashlib.blake2b(text, digest_size=8, salt=salt).digest()
    return np.frombuffer(identity, "<u4").astype(np.uint32)


def gumbel(
    key: UInt32[Array, "2"], position: Int[Array, ""], *, purpose: int, size: int
) -> Float[Array, "V"]:
    """Gumbel noise for the token at an absolute position of one row, float32."""
    return jax.random.gumbel(stream(key, position, purpose=purpose), (size,), jnp.float32)


def again(
    key: UInt32[Array, "2"], position: Int[Array, ""], calls: Int[Array, ""], *, size: int
) -> Float[Array, "V"]:
    """Gumbel noise for one of several draws of the token at a position, float32."""
    drawn = jax.random.fold_in(stream(key, position, purpose=FILL), calls)
    return jax.random.gumbel(drawn, (size,), jnp.float32)


def turns(
    key: UInt32[Array, "2"], positions: Int[Array, "W"], calls: Int[Array, ""]
) -> Float[Array, "W"]:
    """A uniform number per position and step of the row, in [0, 1): a random order of slots."""

    def draw(position):
        drawn = jax.random.fold_in(stream(key, position, purpose=ORDER), calls)
        return jax.random.uniform(drawn, (), jnp.float32)

    return jax.vmap(draw)(positions)


def gaussian(
    key: UInt32[Array, "2"], num: int, step: Int[Array, ""], *, size: int
) -> Float[Array, "N D"]:
    """Normal noise for the first `num` vectors of a row in one of its steps, float32."""

    def draw(position):
        drawn = jax.random.fold_in(stream(key, position, purpose=LATENT), step)
        return jax.random.normal(drawn, (size,), jnp.float32)

    return jax.vmap(draw)(jnp.arange(num, dtype=jnp.int32))


def texts(key: UInt32[Array, "2"], num: int) -> UInt32[Array, "k 2"]:
    """Keys of `num` texts that a row draws side by side; that of the first is the row's own."""

    def own(number):
        return jax.random.key_data(stream(key, number, purpose=TEXT))

    others = jax.vmap(own)(jnp.arange(1, num, dtype=jnp.int32))
    return jnp.concatenate([key[None], others])


def pick(key: UInt32[Array, "2"], calls: Int[Array, ""], *, num: int) -> Float[Array, "k"]:
    """Gumbel noise for one of `num` texts in a step of the row, float32."""
    drawn = jax.random.fold_in(stream(key, jnp.int32(0), purpose=TEXT), calls)
    return jax.random.gumbel(drawn, (num,), jnp.float32)


def stream(key: UInt32[Array, "2"], position: Int[Array, ""], *, purpose: int) -> Array:
    """The JAX key of one row, position and purpose."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(key), position), purpose)
