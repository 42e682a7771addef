"""The one warp: from a target's scores to the law that tokens are drawn from.

Used by plain decoding, by drafters that record their law, and by verifiers, so that the three can
never disagree. Order: repetition penalty, bias, grammar, temperature, top-k, top-p, min-p; in
float32.
Everything is written for one row.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxdecode.core import grammar
from jaxdecode.core.types import Sampling

# Below this a temperature means greedy; dividing by less overflows float32 scores.
GREEDY_BELOW = 1e-5


def warp(
    logits: Float[Array, "V"],
    sampling: Sampling,
    seen: Bool[Array, "V"] | None,
    allowed: UInt32[Array, "M"] | None = None,
) -> Float[Array, "V"]:
    """Unnormalised log-probabilities of one row's next token; -inf where excluded.

    Args:
        logits: scores of the target.
        sampling: this row's parameters (scalars where `Sampling` has a batch axis).
        seen: tokens already in the row, for the repetition penalty; None without one.
        allowed: tokens that the row's grammar allows, packed; None without one.
    """
    scores = logits.astype(jnp.float32)
    if sampling.repetition_penalty is not None and seen is not None:
        penalty = sampling.repetition_penalty
        punished = jnp.where(scores > 0, scores / penalty, scores * penalty)
        scores = jnp.where(seen, punished, scores)
    if sampling.logit_bias is not None:
        scores = scores + sampling.logit_bias
    if allowed is not None:
        scores = jnp.where(grammar.unpack(allowed, scores.shape[0]), scores, -jnp.inf)
    greedy = sampling.temperature < GREEDY_BELOW
    scores = scores / jnp.where(greedy, 1.0, sampling.temperature)
    if sampling.top_k is not None or sampling.top_p is not None:
        scores = _keep_likeliest(scores, sampling.top_k, sampling.top_p)
    if sampling.min_p is not None:
        scores = jnp.where(scores < scores.max() + jnp.log(sampling.min_p), -jnp.inf, scores)
    return scores


def _keep_likeliest(
    scores: Float[Array, "V"], top_k: Int[Array, ""] | None, top_p: Float[Array, ""] | None
) -> Float[Array, "V"]:
    """Top-k, then top-p of what is left; equal scores are kept in order of token id."""
    size = scores.shape[0]
    order = jnp.argsort(-scores, stable=True)
    ranked = scores[order]
    keep = jnp.ones(size, bool)
    if top_k is not None:
        keep &= (jnp.arange(size) < top_k) | (top_k == 0)
    if top_p is not None:
        probs = jax.nn.softmax(jnp.where(keep, ranked, -jnp.inf))
        # A token stays if the likelier ones have not reached top_p yet; the first always stays.
        keep &= (jnp.cumsum(probs) - probs < top_p) | (top_p >= 1.0)
    return jnp.where(jnp.zeros(size, bool).at[order].set(keep), scores, -jnp.inf)


def draw(
    logits: Float[Array, "V"],
    sampling: Sampling,
    seen: Bool[Array, "V"] | None,
    noise: Float[Array, "V"] | None,
    allowed: UInt32[Array, "M"] | None = None,
) -> Int[Array, ""]:
    """One token of the warped law: argmax of scores plus Gumbel noise (ties to the lowest id).

    Args:
        logits: scores of the target.
        sampling: this row's parameters.
        seen: tokens already in the row, or None.
        noise: Gumbel noise, ignored by greedy rows; None if all rows are greedy.
        allowed: as for `warp`.
    """
    scores = warp(logits, sampling, seen, allowed)
    if noise is not None:
        scores = scores + jnp.where(sampling.temperature < GREEDY_BELOW, 0.0, noise)
    return jnp.argmax(scores).astype(jnp.int32)
