"""The largest set of slots whose tokens can depend on each other only so much.

The joint entropy of a set of slots is at least the largest entropy H of one of them, and at most
their sum: what filling them as if independent loses, in nats, is at most the difference. Slots come
in an order, the surest first, and the first n are committed for the largest n with

    sum of H - max of H <= gamma,

which always holds for n = 1.

Exactness: the law of the slots of one step is within gamma nats (Kullback-Leibler) of the joint law
if the target's marginals are right; with gamma = 0 it fills one slot per step.
Source: arXiv:2505.24857 (EB-Sampler).
"""

import dataclasses
import functools
from typing import get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdecode import checks
from jaxdecode.core.protocols import Commit, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Decision, Request, Window
from jaxdecode.sampling import confidence
from jaxdecode.sampling.confidence import Order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        gamma: bound in nats, >= 0.
        order: which slots come first, as in `quota`.
    """

    gamma: float = 0.1
    order: Order = "entropy"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("gamma", self.gamma, "a number >= 0", lambda x: x >= 0)
        checks.choice("order", self.order, get_args(Order))


def make(config: Config, models: Models) -> Commit:
    """The rule."""
    del models
    return Commit(select=functools.partial(_select, config))


def _select(
    config: Config,
    weights: Weights,
    request: Request,
    canvas: Canvas,
    window: Window,
    candidates: Candidates,
) -> Decision:
    del weights, canvas
    score = confidence.score(config.order, request, window, candidates)
    return Decision(commit=within(config.gamma, score, confidence.entropy(candidates), window.open))


def within(
    gamma: float, score: Float[Array, "B W"], doubt: Float[Array, "B W"], open: Bool[Array, "B W"]
) -> Bool[Array, "B W"]:
    """The first slots, by falling score, whose entropies stay within the bound."""
    rank = confidence.rank(score, open)
    order = jnp.argsort(rank, axis=-1)
    ranked = jnp.take_along_axis(jnp.where(open, doubt, jnp.inf), order, axis=-1)
    # The bound only grows from slot to slot; the largest is the same number in sum and maximum.
    lost = jnp.cumsum(ranked, axis=-1) - jax.lax.cummax(ranked, axis=1)
    num = jnp.maximum((lost <= gamma).sum(-1), 1)
    return open & (rank < num[:, None])
