"""Blocks that are filled part by part: only the first part with undecided slots is open.

Idea: a block is what the model was trained to see at once, but its far slots depend on near ones
that are not known yet. Of a model that scores a slot by the row before it, the first slot of a
block is known from the block before, so the first pass on a block decides that slot and no other.

With `sub_reuse` a pass takes in the open part only, and reads keys and values of the block's other
slots as they were when its first slot was last undecided: an approximation.

Exactness: without `sub_reuse` that of `denoise` with reuse "block": keys and values are exact.
Cost: a pass over one block, two when a block begins; over a part of one with `sub_reuse`.
Source: arXiv:2509.26328 (Fast-dLLM v2) section 3.3.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models, Weights
from jaxdecode.core.types import Canvas, Request, Window
from jaxdecode.drafters import denoise
from jaxdecode.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(denoise.Config):
    """Options: those of `denoise`, and two more.

    Attributes:
        sub_block: slots of a part.
        sub_reuse: whether passes inside a part reuse keys and values of the rest of the block.
    """

    sub_block: int = 8
    sub_reuse: bool = False

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
        checks.integer("sub_block", self.sub_block, low=1)
        if not isinstance(self.sub_reuse, bool):
            raise InputError(
                f"sub_reuse={self.sub_reuse!r} is not valid; it must be true or false."
            )


def make(config: Config, models: Models) -> Drafter:
    """The drafter; errors as of `denoise.make`.

    Raises:
        InputError: a part of a block would be reused where blocks are not exact.
    """
    plan, base = denoise.plan_of(config, models), denoise.make(config, models)
    if config.sub_reuse and plan.reuse != "block":
        raise InputError(
            f"sub_reuse=True is for models with blocks of their own and reuse='block', not "
            f"{plan.reuse!r}; leave it out."
        )
    widths = (config.sub_block, *base.widths) if config.sub_reuse else base.widths
    return base._replace(
        propose=functools.partial(_propose, base, plan, config),
        widths=tuple(sorted(set(widths))),
    )


def _propose(
    base: Drafter,
    plan: denoise.Plan,
    config: Config,
    weights: Weights,
    state: denoise.State,
    request: Request,
    canvas: Canvas,
    view: Any,
) -> tuple[Window, denoise.State]:
    window, state = base.propose(weights, state, request, canvas, view)
    slot = jnp.arange(window.open.shape[1], dtype=jnp.int32)
    part = jnp.argmax(window.open, axis=1).astype(jnp.int32) // config.sub_block * config.sub_block
    in_part = (slot >= part[:, None]) & (slot < part[:, None] + config.sub_block)
    first_is_open = window.open[:, 0] if plan.shift else jnp.zeros_like(canvas.done)
    alone = (state.step == 0) & first_is_open
    here = jnp.where(alone[:, None], slot == 0, in_part)
    if config.sub_reuse:
        # What the pass on a first slot left behind is from before that slot was decided.
        began_alone = state.size == state.stop - state.start
        known = state.step > began_alone.astype(jnp.int32)
        settled = ~jnp.take_along_axis(window.open, part[:, None], axis=1)[:, 0]
        window = _of_part(plan, config, state, window, part, known & settled)
    return dataclasses.replace(window, open=window.open & here), state


def _of_part(
    plan: denoise.Plan,
    config: Config,
    state: denoise.State,
    window: Window,
    part: Int[Array, "B"],
    chosen: Bool[Array, "B"],
) -> Window:
    """The window, of the chosen rows with only one part of the block going in.

    The first slot of that part is decided, so nothing is scored by a row before it.
    """
    first = jnp.where(chosen, window.start + part, window.first)
    num = jnp.where(chosen, jnp.minimum(config.sub_block, state.stop - first), window.num)
    index = jnp.arange(window.tokens.shape[1], dtype=jnp.int32)
    rows = (first - window.first)[:, None] + index
    slot = window.start[:, None] + jnp.arange(window.open.shape[1], dtype=jnp.int32)
    return dataclasses.replace(
        window,
        tokens=jnp.take_along_axis(window.tokens, rows, axis=1, mode="clip"),
        first=first,
        num=num,
        cached=jnp.where(chosen, state.stop, window.cached),
        scored=jnp.clip(slot - plan.shift - first[:, None], 0, num[:, None] - 1),
    )
