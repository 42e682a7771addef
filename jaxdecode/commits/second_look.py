"""`quota`, and decided slots that the target no longer believes in are undone.

A pass also gives the probability that each decided token has by now, seen in its own place and with
all that has been decided since. A decided slot is reopened if that probability

    is below a bound that rises from step to step, or
    has fallen by more than `max_drop` since it was decided,

the least probable first, at most a share `budget` of the decided slots (rounded up) per step, and
none in the last step. So there are as many passes as steps, however many slots there are.

Exactness: none; with a budget of 0 it is `quota`.
Source: arXiv:2508.20072 (secondary remasking of Discrete Diffusion VLA). The paper gives no
constants; the ones here are ours. Vision, language and whatever else is given are never reopened.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.commits import quota
from jaxdecode.core.protocols import Commit, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Decision, Request, Window
from jaxdecode.sampling import confidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(quota.Config):
    """Options: those of `quota`, and more.

    Attributes:
        low: bound on the probability after the first step of many, in [0, 1].
        high: the bound in the last step.
        max_drop: how much probability a decided token may lose, in [0, 1]; 1 is any amount.
        budget: share of the decided slots that one step may reopen, in [0, 1].
    """

    steps: int = 12
    schedule: quota.Schedule = "cosine"
    low: float = 0.2
    high: float = 0.5
    max_drop: float = 0.25
    budget: float = 0.1

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
        for name in ("low", "high", "max_drop", "budget"):
            checks.number(name, getattr(self, name), "a number in [0, 1]", lambda x: 0 <= x <= 1)


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
    del weights
    decided = confidence.revisable(canvas, window)
    token = confidence.taken(canvas.tokens, window)
    probs = jax.nn.softmax(candidates.scores)
    now = jnp.take_along_axis(probs, token[..., None], axis=-1)[..., 0]
    then = jnp.exp(confidence.taken(canvas.logprob, window))
    steps = config.steps or jnp.maximum(window.size, 1)
    bound = config.low + (config.high - config.low) * (window.step + 1) / steps
    doubted = decided & ((now < bound[:, None]) | (then - now > config.max_drop))
    # The last step leaves nothing undecided.
    most = jnp.ceil(config.budget * decided.sum(-1)).astype(jnp.int32)
    most = jnp.where(window.step >= steps - 1, 0, most)
    return Decision(
        commit=quota.chosen(config, request, window, candidates),
        reopen=confidence.best(-now, doubted, most),
        settles=False,
    )
