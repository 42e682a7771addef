"""A fixed number of slots per step, those that come first in some order.

Schedules, for a block of n undecided slots that is to be filled in S steps; step i = 0 .. S - 1:
    even      n // S slots, one more in the first n % S steps (arXiv:2502.09992, released sampler)
    linear    floor(m (1 - t[i+1] / t[i])) of the m slots left, t from 1 down to 0.001 in S equal
              steps, and all of them in the last one (arXiv:2508.15487, released sampler)
    cosine    as many as bring the undecided part down to cos(pi/2 (i+1)/S) (arXiv:2202.04200)
    doubling  1, 2, 4, ... slots, and all that are left in step S - 1 (arXiv:2509.23924)

The order may be noisy: with scores s, Gumbel noise g and an amount a, slots come by s + a g, that
is, they are drawn one after the other by the law softmax(s / a) (alg_temp of arXiv:2508.15487).
Annealed, the noise falls to nothing at the last step, as a (1 - i / (S - 1)) (arXiv:2202.04200,
arXiv:2501.06158).

Exactness: with one slot per step each token has the target's law given those decided before it;
this is what faster rules are measured against. With more, they are filled as if independent.
"""

import dataclasses
import functools
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Commit, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Decision, Request, Window
from jaxdecode.sampling import confidence
from jaxdecode.sampling.confidence import Order

Schedule = Literal["even", "linear", "cosine", "doubling"]
# Where the linear schedule ends; its last step takes what is left.
LAST_TIME = 1e-3
# Counts of slots that are whole numbers but for rounding stay so.
ROUNDING = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        steps: steps per block; 0 is one slot per step, and with "doubling" as many as it takes.
        schedule: how the slots are spread over the steps: "even", "linear", "cosine", "doubling".
        order: which slots come first: those of the largest "probability" of their candidate (or
            "log_probability", the same but for noise), "margin" between the two likeliest tokens,
            or smallest "entropy"; "random", "left_to_right".
        order_noise: amount of Gumbel noise on what orders the slots, >= 0.
        anneal: whether that noise falls to nothing at the last step.
    """

    steps: int = 0
    schedule: Schedule = "even"
    order: Order = "probability"
    order_noise: float = 0.0
    anneal: bool = False

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("steps", self.steps, low=0)
        checks.choice("order", self.order, get_args(Order))
        checks.number("order_noise", self.order_noise, "a number >= 0", lambda x: x >= 0)
        checks.choice("schedule", self.schedule, get_args(Schedule))


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
    return Decision(commit=chosen(config, request, window, candidates))


def chosen(
    config: Config, request: Request, window: Window, candidates: Candidates
) -> Bool[Array, "B W"]:
    """The slots that the schedule gives to this step."""
    score = scores(config, request, window, candidates)
    return confidence.best(score, window.open, due(config, window))


def scores(
    config: Config, request: Request, window: Window, candidates: Candidates
) -> Float[Array, "B W"]:
    """What orders the slots, the largest first."""
    score = confidence.score(config.order, request, window, candidates)
    if not config.order_noise:
        return score
    amount = jnp.float32(config.order_noise)
    if config.anneal:
        amount = amount * (1 - progress(config, window)[:, None])
    return score + amount * confidence.gumbel(request, window)


def progress(config: Config, window: Window) -> Float[Array, "B"]:
    """How far the schedule is: 0 in its first step, 1 in its last."""
    last = jnp.maximum((config.steps or window.size) - 1, 1)
    return jnp.minimum(window.step / last, 1.0)


def due(config: Config, window: Window) -> Int[Array, "B"]:
    """How many slots the schedule gives to this step, of those that are still undecided."""
    left = window.open.sum(-1, dtype=jnp.int32)
    step, size = window.step, window.size
    if config.schedule == "doubling":
        # 2^i is more than any canvas holds long before the shift overflows.
        number = jnp.int32(1) << jnp.minimum(step, 24)
    elif config.schedule == "even":
        steps = config.steps or size
        number = size // steps + (step < size % steps)
    else:
        number = _paced(config.schedule, config.steps or size, step, size, left)
    number = jnp.minimum(number, left)
    if config.steps or config.schedule != "doubling":
        number = jnp.where(step >= (config.steps or size) - 1, left, number)
    return number.astype(jnp.int32)


def _paced(schedule: str, steps, step, size, left):
    """Slots due by the clock of a schedule that counts what should be left."""
    if schedule == "linear":
        now, then = (1 - i / steps * (1 - LAST_TIME) for i in (step, step + 1))
        return jnp.floor(left * (1 - then / now)).astype(jnp.int32)
    keep = jnp.cos(jnp.pi / 2 * (step + 1) / steps)
    return left - jnp.floor(size * keep + ROUNDING).astype(jnp.int32)
