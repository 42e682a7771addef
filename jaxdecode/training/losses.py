"""Losses that objectives share; float32, means over the tokens that count."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode.core import ops

# Rows of scores over a vocabulary that are held at once; of wide rows more.
CHUNK = 128
# Rows that share a chunk; more rows make it larger instead of shorter, for the vocabulary's matrix
# is read once per chunk.
SHARING = 4


def weighted_mean(values: Float[Array, "*B"], weight: Float[Array, "*B"]) -> Float[Array, ""]:
    """Mean of the values by weight; 0 if nothing has any."""
    return (values * weight).sum() / jnp.maximum(weight.sum(), 1e-9)


def per_head(values: Float[Array, "B T H"], weight: Float[Array, "B T H"]) -> Float[Array, "H"]:
    """Weighted means over the tokens, head by head."""
    return jax.vmap(weighted_mean, in_axes=-1)(values, weight)


def cross_entropy(
    logits: Float[Array, "*B V"], tokens: Int[Array, "*B"], smoothing: float = 0.0
) -> Float[Array, "*B"]:
    """-log p(token), in nats; a share `smoothing` of it is the mean over all tokens."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    if smoothing:
        chosen = (1 - smoothing) * chosen + smoothing * logits.mean(-1)
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def soft_cross_entropy(
    logits: Float[Array, "*B V"], law: Float[Array, "*B V"]
) -> Float[Array, "*B"]:
    """-sum of law times log p, in nats."""
    return jax.nn.logsumexp(logits, axis=-1) * law.sum(-1) - (law * logits).sum(-1)


def divergence(logits: Float[Array, "*B V"], law: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """KL(law || the law of the scores), in nats."""
    entropy = -(law * jnp.log(jnp.where(law > 0, law, 1.0))).sum(-1)
    return soft_cross_entropy(logits, law) - entropy


def smooth_l1(x: Float[Array, "*B D"], y: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """Huber loss of width 1, averaged over the last axis."""
    error = jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32))
    return jnp.where(error < 1, 0.5 * error**2, error - 0.5).mean(-1)


def over_tokens(
    function: Callable[..., Any], *arrays: Float[Array, "B T ..."], chunk: int | None = None
) -> Any:
    """`function` on about N tokens at a time; what it returns is joined again to `[B, T, ...]`.

    Scores over a vocabulary are many times larger than what they are made from, so those of all
    tokens are never held at once: the backward pass computes each chunk's again. A chunk is a few
    places of every row, so that rows stay on the devices they are split over.

    Args:
        function: from `[N, ...]` arrays to a tree of `[N, ...]` arrays.
        *arrays: leading axes B, T.
        chunk: N; where rows are many, more. None for so many that their scores are as large as
            the vocabulary's matrix in 16 bit: with fewer, reading it is most of what is moved.
    """
    batch = len(arrays[0])
    if chunk is None:
        *each, depth = arrays[0].shape[2:] or (1,)
        chunk = max(CHUNK, depth // (2 * math.prod(each)))

    def flat(*pieces: Array) -> Any:
        out = function(*(piece.reshape(-1, *piece.shape[2:]) for piece in pieces))
        return jax.tree.map(lambda rows: rows.reshape(batch, -1, *rows.shape[1:]), out)

    return ops.over_places(flat, max(chunk // min(batch, SHARING), 1), *arrays)
