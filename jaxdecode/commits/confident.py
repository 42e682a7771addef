"""Every slot whose candidate is likely enough; where none is, those that a schedule gives.

`threshold` falls back on one slot, this rule on as many as `quota` would fill in this step; and
steps, where they are given, bound the passes: the last one fills everything. The fallback's clock
is the number of steps; with the schedule "even" it gives the same number whatever came before.

The probability is the target's own, whatever temperature and top-p the candidate was drawn with.

Exactness: none; with a threshold that no candidate reaches it is `quota`.
Source: arXiv:2505.16990 section 3.3 (confident decoding).
"""

import dataclasses
import functools

import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.commits import quota
from jaxdecode.core.protocols import Commit, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Decision, Request, Window
from jaxdecode.sampling import confidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(quota.Config):
    """Options: those of `quota`, for the fallback, and one more.

    Attributes:
        threshold: probability above which a candidate is committed, in (0, 1].
    """

    threshold: float = 0.95

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
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
    del weights, canvas
    sure = window.open & (confidence.probability(candidates) > config.threshold)
    fallback = quota.chosen(config, request, window, candidates)
    last = (window.step >= config.steps - 1) if config.steps else jnp.zeros_like(window.step, bool)
    take_fallback = last | ~sure.any(-1)
    return Decision(commit=jnp.where(take_fallback[:, None], fallback, sure))
