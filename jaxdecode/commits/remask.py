"""The ancestral sampler that also hides what it has decided, so that early mistakes can go.

With a share a = 1 - u of slots decided (u as in `ancestral`; t before the step, s after it), every
decided slot is hidden again with chance r, and every undecided one is decided with chance

    (a_s - (1 - r) a_t) / (1 - a_t),

which is more than without, so that the share is a_s after the step all the same. r is as large as
`max_hidden`, but never more than (1 - a_s) / a_t, beyond which the share could not be kept: in the
last step nothing is hidden and all is decided.

Exactness: the text has the law of the model's own process as steps grow, as for `ancestral`.
Source: arXiv:2503.00307 (ReMDM, its capped schedule).
"""

import dataclasses
import functools

import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.commits import ancestral
from jaxdecode.core.protocols import Commit, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Decision, Request, Window
from jaxdecode.sampling import confidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        steps: steps per block; 0 is one for each of its slots.
        schedule: how the undecided share falls: "linear" or "cosine".
        max_hidden: largest chance that a decided slot is hidden again, in [0, 1].
    """

    steps: int = 0
    schedule: ancestral.Decline = "linear"
    max_hidden: float = 0.04

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        ancestral.Config(steps=self.steps, schedule=self.schedule)
        checks.number("max_hidden", self.max_hidden, "a number in [0, 1]", lambda x: 0 <= x <= 1)


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
    del weights, candidates
    steps = config.steps or jnp.maximum(window.size, 1)
    before, after = (1 - _undecided(config, window.step + i, steps) for i in (0, 1))
    most = (1 - after) / jnp.maximum(before, 1e-9)
    hide = jnp.minimum(config.max_hidden, most)
    decide = (after - (1 - hide) * before) / jnp.maximum(1 - before, 1e-9)
    drawn = confidence.uniform(request, window)
    last = (window.step >= steps - 1)[:, None]
    return Decision(
        commit=window.open & ((drawn < decide[:, None]) | last),
        reopen=confidence.revisable(canvas, window) & (drawn < hide[:, None]) & ~last,
        settles=False,
    )


def _undecided(config: Config, step, steps):
    """Share of slots that are undecided before a step."""
    passed = jnp.minimum(step / steps, 1.0)
    return 1 - passed if config.schedule == "linear" else jnp.cos(jnp.pi / 2 * passed)
