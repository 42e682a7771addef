"""Every undecided slot by the schedule's chance, whatever the target thinks of it.

The process that a masked diffusion model is trained to undo hides every slot independently. Undone
in S steps, with a share u(i) of slots undecided before step i, an undecided slot is decided in step
i with chance 1 - u(i + 1) / u(i), so that u(i) of them are undecided before every step:
    linear   u(i) = 1 - i / S, down to 0.001; log-linear noise has the same chances
    cosine   u(i) = cos(pi/2 i / S)
and the last step decides all that are left. Slots are independent, so one number U per slot, drawn
once, says when: in the step with u(i + 1) <= U < u(i). Steps in which no slot is decided would ask
the target about a text that has not changed; they are left out, which changes no law, as the target
does not see the time. So there are at most as many passes as slots, and of S.

As S grows, each step decides one slot, a uniformly random one (`steps=0`). The times of those steps
are then t u^(1/m) for m slots left and a uniform u; nobody reads them here.

Exactness: with `steps=0` the text has the law of the model with slots decided in a uniformly random
order. With fewer, slots of one step are filled as if independent.
Source: arXiv:2406.07524 section 3 (ancestral sampler, and its cache), arXiv:2406.04329 (cosine);
first hitting: arXiv:2409.02908. "origin" of arXiv:2508.15487 is the linear one.
"""

import dataclasses
import functools
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdecode import checks
from jaxdecode.commits.quota import LAST_TIME
from jaxdecode.core.protocols import Commit, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Decision, Request, Window
from jaxdecode.sampling import confidence

Decline = Literal["linear", "cosine"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        steps: steps per block; 0 is infinitely many, so that each pass decides one slot.
        schedule: how the undecided share falls: "linear" or "cosine".
    """

    steps: int = 0
    schedule: Decline = "linear"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("steps", self.steps, low=0)
        checks.choice("schedule", self.schedule, get_args(Decline))


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
    del weights, canvas, candidates
    kept = confidence.uniform(request, window, renewed=False)
    if not config.steps:
        return Decision(commit=confidence.best(kept, window.open, jnp.ones_like(window.start)))
    return Decision(commit=_soonest(hit(config, kept), window.open))


def hit(config: Config, kept: Float[Array, "B W"]) -> Float[Array, "B W"]:
    """The step that decides each slot: the i with u(i + 1) <= kept < u(i)."""
    if config.schedule == "linear":
        time = (1 - kept) / (1 - LAST_TIME)
    else:
        time = jnp.arccos(kept) * (2 / jnp.pi)
    return jnp.clip(jnp.ceil(config.steps * time) - 1, 0, config.steps - 1)


def _soonest(step: Float[Array, "B W"], open: Bool[Array, "B W"]) -> Bool[Array, "B W"]:
    """Undecided slots of the first step that decides any."""
    first = jnp.where(open, step, jnp.inf).min(-1, keepdims=True)
    return open & (step == first)
