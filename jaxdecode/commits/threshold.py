"""Every slot whose candidate is likely enough, and at least the likeliest one.

Exactness: none in general. If the joint law gives every committed candidate more than 1 - e, and
(n + 1) e <= 1 for n of them, they are what greedy filling one by one would give (arXiv:2505.22618,
theorem 1).
Source: arXiv:2505.22618 section 3.3; at least one, so that every step advances.
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
        threshold: probability from which a candidate is committed, in (0, 1].
    """

    threshold: float = 0.9

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("threshold", self.threshold, "a number in (0, 1]", lambda x: 0 < x <= 1)


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
    one = jnp.ones_like(window.start)
    sure = window.open & (score >= config.threshold)
    return Decision(commit=sure | confidence.best(score, window.open, one))
