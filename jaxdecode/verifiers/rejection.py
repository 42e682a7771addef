"""Recursive rejection: keep a draft with chance target / draft law, else go on with the residual.

Children are looked at in draft order. Child x is kept with probability min(1, r(x) / s(x)), where
r starts as the target's law and s as the law the children were drawn from. After a refusal r
becomes the positive part of r - s, normalised, and s loses x if drafts are drawn without
replacement. What is left after the last child is drawn from. With one child per node this is
ordinary speculative sampling.

Exactness: L1 against `ar` for children drawn from the recorded law in the stated way; whether a
child exists may depend on earlier drafts, never on its own token.
Cost: a few passes over the vocabulary per child on the accepted path.
Source: arXiv:2211.17192 and arXiv:2302.01318 (one child), arXiv:2402.14160 (without replacement),
arXiv:2305.09781 (with replacement); differs: a refused path whose residual draw happens to be one
of the children goes on there.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode.core.protocols import Models, Verifier
from jaxdecode.errors import InputError
from jaxdecode.sampling import residual
from jaxdecode.trees import walk

Draws = Literal["without_replacement", "with_replacement"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        draws: how the children of one node were drawn. Several independent chains are drawn with
            replacement, the likeliest tokens after Gumbel noise without.
    """

    draws: Draws = "without_replacement"

    def __post_init__(self) -> None:
        """Refuses a word that is not one of the two."""
        if self.draws not in get_args(Draws):
            raise InputError(
                f"draws={self.draws!r} is not known; use {' or '.join(get_args(Draws))}."
            )


def make(config: Config, models: Models) -> Verifier:
    """The verifier."""
    del models
    once = config.draws == "without_replacement"
    return walk.make(lambda visit: jnp.log(law(visit, once=once)), draws=config.draws)


def law(visit: walk.Visit, *, once: bool) -> Float[Array, "V"]:
    """Law of the next token given the children; `once` if no token was drawn twice."""
    target = visit.target_probs()
    if visit.draft_probs is None or visit.tokens.shape[0] == 0:
        return target

    def consider(carry, child):
        left, draft, decided, going = carry
        token, valid = child
        # A token that could not be drawn is no draft: more children than the law has tokens.
        valid = valid & (draft[token] > 0)
        kept = jnp.where(valid, residual.accept(left[token], draft[token]), 0.0)
        decided = decided.at[token].add(going * kept)
        left = jnp.where(valid, residual.normalise(left - draft, left), left)
        if once:
            others = draft.at[token].set(0.0)
            draft = jnp.where(valid, residual.normalise(others, jnp.zeros_like(others)), draft)
        return (left, draft, decided, going * (1.0 - kept)), None

    start = (target, visit.draft_probs, jnp.zeros_like(target), jnp.float32(1.0))
    (left, _, decided, going), _ = jax.lax.scan(consider, start, (visit.tokens, visit.valid))
    return decided + going * left
