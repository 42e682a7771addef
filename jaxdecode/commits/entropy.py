"""Every slot about which the target is in little doubt, and at least the one of least doubt.

Doubt is the entropy of the target's law of a slot, in nats. Models that were trained to be certain
where they are right fill most of a text in a few steps.

Exactness: none; with a threshold of 0 it fills one slot per step, the surest by entropy.
Source: arXiv:2509.26488 section 3.3 (entropy threshold).
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
        threshold: entropy in nats up to which a slot is committed, >= 0.
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("threshold", self.threshold, "a number >= 0", lambda x: x >= 0)


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
    doubt = confidence.entropy(candidates)
    one = jnp.ones_like(window.start)
    sure = window.open & (doubt <= config.threshold)
    return Decision(commit=sure | confidence.best(-doubt, window.open, one))
