"""What a token says of the slots beside it, asked of the model once: pairs of tokens.

In a text of undecided slots, one token in the middle changes the laws of the slots around it. What
it adds to the scores there says what it would add elsewhere, as if nothing else were known: enough
to guess what the model wants next to a token that it has not seen in its place yet.

Cost: one pass over `4 * reach + 1` slots per token of the vocabulary; kept are `2 * reach` times
`KEPT` tokens and numbers for each.
Source: ours; no paper of it is known to us.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode.core.protocols import Target
from jaxdecode.models import filled
from jaxdecode.models.config import Denoiser

# Likeliest tokens beside a token of which it is kept what is added to their scores.
KEPT = 32
# Least probability that all other tokens together count as having: models are not surer than that.
REST = 1e-4
# Scores that are computed at once, as a power of two: of 32 bits, 256 MiB.
SCORES = 2**26


class Pairs(NamedTuple):
    """A table over the vocabulary; slots beside a token are O in number, from left to right.

    Attributes:
        tokens: likeliest tokens of each slot.
        gain: what is added to their scores, beyond what is added to those of all other tokens.
    """

    tokens: Int[Array, "V O K"]
    gain: Float[Array, "V O K"]


@functools.partial(jax.jit, static_argnames=("target", "denoiser", "size", "reach"))
def asked(params: Any, *, target: Target, denoiser: Denoiser, size: int, reach: int) -> Pairs:
    """The table of a model.

    Args:
        params: its parameters.
        target: its functions.
        denoiser: how it fills slots.
        size: tokens of its vocabulary.
        reach: slots on each side.
    """
    width, middle = 4 * reach + 1, 2 * reach
    beside = slice(middle - reach, middle + reach + 1)

    def told(tokens: Int[Array, "B"], given: bool) -> Float[Array, "B O V"]:
        texts = jnp.zeros((len(tokens), width), jnp.int32).at[:, middle].set(tokens)
        masked = jnp.ones(texts.shape, bool).at[:, middle].set(not given)
        length = jnp.full(len(tokens), width, jnp.int32)
        law = filled.laws(
            params, texts, length, masked, target=target, denoiser=denoiser, slots=beside
        )
        return jnp.delete(law, reach, axis=1)

    plain = told(jnp.zeros(1, jnp.int32), given=False)

    def some(tokens: Int[Array, "B"]) -> Pairs:
        law = told(tokens, given=True)
        logprob, kept = jax.lax.top_k(law, min(KEPT, size))
        before = jnp.take_along_axis(jnp.broadcast_to(plain, law.shape), kept, axis=-1)
        others = _rest(logprob) - _rest(before)
        gain = logprob - before - others[..., None]
        return Pairs(kept.astype(jnp.int32), jnp.where(jnp.isfinite(gain), gain, 0.0))

    at_once = min(max(SCORES // (2 * reach * size), 1), size)
    tokens = jnp.arange(math.ceil(size / at_once) * at_once, dtype=jnp.int32) % size
    found = jax.lax.map(some, tokens.reshape(-1, at_once))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], found)


def _rest(logprob: Float[Array, "B O K"]) -> Float[Array, "B O"]:
    """Log of the probability that the kept tokens leave to others."""
    return jnp.log(jnp.maximum(1.0 - jnp.exp(logprob).sum(-1), REST))


def added(
    pairs: Pairs, scores: Float[Array, "B W V"], slot: Int[Array, "B"], token: Int[Array, "B"]
) -> Float[Array, "B W V"]:
    """The scores with what a token in a slot adds to those beside it."""
    reach, width = pairs.gain.shape[1] // 2, scores.shape[1]
    beside = jnp.delete(jnp.arange(-reach, reach + 1), reach)

    def row(scores, slot, token):
        where = slot + beside
        # A negative index would count from the end.
        where = jnp.where(where < 0, width, where)[:, None]
        return scores.at[where, pairs.tokens[token]].add(pairs.gain[token], mode="drop")

    return jax.vmap(row)(scores, slot, token)
