"""The largest number of likeliest candidates that the theorem of parallel filling allows.

With probabilities c1 >= c2 >= ... of the undecided slots, the first n are committed for the largest
n with (n + 1)(1 - cn) < f; at least one is.

Exactness: with f = 1 and probabilities of the joint law, the same tokens as greedy filling one by
one (arXiv:2505.22618, theorem 1); those of the marginals, which a model gives, only resemble it.
Source: arXiv:2505.22618 section 3.3 (factor).
"""

import dataclasses
import functools

import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.core.protocols import Commit, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Decision, Request, Window
from jaxdecode.sampling import confidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        factor: f; larger commits more at once, > 0.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("factor", self.factor, "a number > 0", lambda x: x > 0)


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
    del weights, request, canvas
    score = confidence.probability(candidates)
    rank = confidence.rank(score, window.open)
    fits = window.open & ((rank + 2) * (1 - score) < config.factor)
    num = jnp.where(fits, rank + 1, 1).max(-1)
    return Decision(commit=window.open & (rank < num[:, None]))
