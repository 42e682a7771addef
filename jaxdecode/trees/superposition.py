"""k hypotheses that go through the target as one: how one forward pass extends all of them.

The target sees the weighted sum of the hypotheses' last tokens and scores one next token, which all
of them share; they differ by their scores so far and, with a prior, by their own n-grams.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.types import Request, Superposition

# Added to the scores of a hypothesis none of whose candidates its n-grams know.
_UNKNOWN = -200.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options, the same for the drafter and the verifier.

    Attributes:
        num_texts: hypotheses, and texts in the result.
        num_candidates: likeliest tokens that may extend them, renormalised.
        tau: temperature of the scores of those.
        alpha: share of the row's own n-grams in the scores; 0 leaves them out.
    """

    num_texts: int = 3
    num_candidates: int = 9
    tau: float = 0.06
    alpha: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_texts", self.num_texts, low=1)
        checks.integer("num_candidates", self.num_candidates, low=2)
        checks.number("tau", self.tau, "a number > 0", lambda x: x > 0)
        checks.number("alpha", self.alpha, "a number in [0, 1)", lambda x: 0 <= x < 1)


class Extension(NamedTuple):
    """The 2k best extensions of a row's hypotheses, best first.

    Attributes:
        source: hypothesis that is extended.
        token: by which token.
        score: log score of the result; -inf if it does not exist.
        ends: it meets a stop token and is among the best k: a finished text.
        alive: the k extensions that go on.
        alive_score: their scores; -inf where fewer than k go on.
        over: k finished texts are at least as likely as anything that could still come.
        committed: token of the best hypothesis that goes on; a stop token if the row is over.
    """

    source: Int[Array, "E"]
    token: Int[Array, "E"]
    score: Float[Array, "E"]
    ends: Bool[Array, "E"]
    alive: Int[Array, "k"]
    alive_score: Float[Array, "k"]
    over: Bool[Array, ""]
    committed: Int[Array, ""]


def extend(
    part: Superposition, logits: Float[Array, "1 V"], request: Request, config: Config
) -> Extension:
    """One step of one row."""
    scores, num = part.scores[0], config.num_texts
    bias = request.sampling.logit_bias
    width = min(config.num_candidates, logits.shape[-1])
    best, tokens = jax.lax.top_k(logits[0] if bias is None else logits[0] + bias, width)
    law = jax.nn.log_softmax(best.astype(jnp.float32) / config.tau)
    mixed = jnp.broadcast_to(law, (num, law.shape[0]))
    if part.prior is not None:
        own = (1 - config.alpha) * law
        mixed = own + config.alpha * jnp.log(part.prior[0][:, tokens])
        mixed = jnp.where(jnp.isfinite(mixed).any(-1, keepdims=True), mixed, own + _UNKNOWN)
    score, index = jax.lax.top_k((scores[:, None] + mixed).reshape(-1), 2 * num)
    source, token = jnp.divmod(index, law.shape[0])
    token = tokens[token]
    stops = (token[:, None] == request.stop_tokens).any(-1)
    exists = jnp.isfinite(score)
    ends = stops & exists & (jnp.arange(2 * num) < num)
    goes_on = exists & ~stops
    alive = jnp.argsort(~goes_on, stable=True)[:num]
    alive_score = jnp.where(goes_on[alive], score[alive], -jnp.inf)
    ended = jnp.concatenate([part.ended[0], jnp.where(ends, score, -jnp.inf)])
    # Scores only fall, so nothing that goes on can overtake a text that is ahead now.
    over = jax.lax.top_k(ended, num)[0][-1] >= alive_score[0]
    stop = jnp.where(ends.any(), token[jnp.argmax(ends)], request.stop_tokens[0])
    committed = jnp.where(over, stop, token[alive[0]])
    return Extension(source, token, score, ends, alive, alive_score, over, committed)
