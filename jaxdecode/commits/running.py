"""The surest slots of the block, decided ones among them: what falls behind is undone.

`quota` says how many slots of the block are decided after each step. They are the surest ones: a
decided slot counts with the probability its token had when it was chosen, an undecided one with
that of its candidate now. So early choices that were unsure give way to later ones that are sure.

Exactness: none.
Source: arXiv:2508.13148 (running confidence remasking). There an undecided slot counts with the
largest probability that any step gave it; here only what would be written counts.
"""

import dataclasses
import functools

import jax.numpy as jnp

from jaxdecode.commits import quota
from jaxdecode.core.protocols import Commit, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Decision, Request, Window
from jaxdecode.errors import InputError
from jaxdecode.sampling import confidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(quota.Config):
    """Options: those of `quota`, whose order is by probability."""

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
        if self.order != "probability" or self.order_noise:
            raise InputError(
                f"order={self.order!r} with order_noise={self.order_noise!r} cannot be compared "
                "with earlier steps; leave both out."
            )


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
    del weights, request
    decided = confidence.revisable(canvas, window)
    known = jnp.exp(confidence.taken(canvas.logprob, window))
    score = jnp.where(decided, known, confidence.probability(candidates))
    num = decided.sum(-1, dtype=jnp.int32) + quota.due(config, window)
    kept = confidence.best(score, decided | window.open, num)
    return Decision(commit=kept & window.open, reopen=decided & ~kept, settles=False)
