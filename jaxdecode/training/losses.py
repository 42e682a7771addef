"""Losses that objectives share; float32, means over the tokens that count."""

import functools
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
    return ops.over_places(_of_rows(function), _places_of(chunk, arrays[0]), *arrays)


def shares(weight: Float[Array, "B T K"]) -> Float[Array, "B T K"]:
    """What each token counts in `per_head` means."""
    return weight / jnp.maximum(weight.sum((0, 1)), 1e-9)


def summed(
    function: Callable[..., Any],
    params: Any,
    rows: Any,
    given: Any,
    weight: Float[Array, "B T *K"],
) -> tuple[Float[Array, ""], Any]:
    """The sum over tokens of weight times error, and what else is told of each token.

    The gradient of a sum is that of its parts, so each chunk's is computed along with its errors:
    `over_tokens` would score all tokens a second time for it.

    Args:
        function: (params, rows, given), of N tokens -> their errors `[N, *K]` and a tree of
            `[N, ...]`. What is learned must be among params and rows.
        params: floating-point tree.
        rows: tree of floating-point `[B, T, ...]`, whose gradient is wanted too.
        given: tree of `[B, T, ...]`, without a gradient.
        weight: of every error.
    """
    size = _places_of(None, jax.tree.leaves(rows)[0])

    def total(params, piece):
        rows, given, weight = piece
        errors, told = _of_rows(functools.partial(function, params))(rows, given)
        return (errors * weight).sum(), told

    def step(carry, piece):
        so_far, into_params = carry
        rows, *rest = piece
        found = jax.value_and_grad(
            lambda params, rows: total(params, (rows, *rest)), argnums=(0, 1), has_aux=True
        )(params, rows)
        (value, told), (more, into_rows) = found
        return (so_far + value, jax.tree.map(jnp.add, into_params, more)), (into_rows, told)

    learned = params, rows
    params, rows = jax.lax.stop_gradient(learned)
    start = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
    pieces = ops.pieces_of((rows, given, weight), size)
    (value, into_params), found = jax.lax.scan(step, start, pieces)
    into_rows, told = ops.joined(found, weight.shape[1])
    return _with_gradient(value, learned, (into_params, into_rows)), told


@jax.custom_vjp
def _with_gradient(value: Float[Array, ""], learned: Any, gradient: Any) -> Float[Array, ""]:
    """The value, as one whose gradient is known."""
    del learned, gradient
    return value


def _keep(value, learned, gradient):
    del learned
    return value, gradient


def _scale(gradient, by):
    return None, jax.tree.map(lambda leaf: (by * leaf).astype(leaf.dtype), gradient), None


_with_gradient.defvjp(_keep, _scale)


def _of_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tokens as one of a few places of every row."""

    def of_rows(*trees: Any) -> Any:
        batch = len(jax.tree.leaves(trees)[0])
        flat = jax.tree.map(lambda rows: rows.reshape(-1, *rows.shape[2:]), trees)
        return jax.tree.map(lambda x: x.reshape(batch, -1, *x.shape[1:]), function(*flat))

    return of_rows


def _places_of(chunk: int | None, rows: Float[Array, "B T *D"]) -> int:
    """Places of every row in a chunk of about so many tokens."""
    if chunk is None:
        *each, depth = rows.shape[2:] or (1,)
        chunk = max(CHUNK, depth // (2 * math.prod(each)))
    return max(chunk // min(len(rows), SHARING), 1)
