"""`denoise`, and a decided slot goes in once more before its keys and values are reused.

Idea: keys and values of a slot jump when the mask token gives way to a token, and change little
after that. So a pass takes in what was undecided at the step before: slots that still are, and
those decided since, which go in as tokens for the first time; from then on the cache speaks for
them. Every so often, and in the first two steps of a block, everything goes in.

With shifted models the slot before an undecided one goes in as well, since it scores it.

Exactness: none; renewed at every step it is `denoise`.
Cost: a pass takes in as many slots as were undecided a step ago, and the whole text at renewals;
keys and values as of an autoregressive model.
Source: arXiv:2505.15781 (dKV-Cache-Decode). Keys stay where their slots are, so nothing moves; the
slots that go in are a list, whose length programs are compiled for in powers of two.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Request, Window, pytree
from jaxdecode.drafters import denoise
from jaxdecode.errors import InputError

# Rows that passes are compiled for, besides the whole text.
_WIDTHS = (64, 128, 256, 512, 1024)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        block_length: as in `denoise`.
        renew_every: steps of a block after which everything goes in again, at least 1; 0: never.
    """

    block_length: int = 0
    renew_every: int = 8

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("block_length", self.block_length, low=0)
        checks.integer("renew_every", self.renew_every, low=0)


@pytree
class State:
    """Where a row is, and what was undecided before its last step."""

    place: denoise.State
    before: Bool[Array, "B L"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter.

    Raises:
        InputError: the model cannot fill undecided slots, or has blocks, whose reuse is exact.
    """
    plain = denoise.Config(block_length=config.block_length, reuse="none")
    plan = denoise.plan_of(plain, models)
    if plan.aligned:
        raise InputError(
            f"this model has blocks of {plan.block} tokens, whose keys and values are reused "
            "exactly; use another method that fills slots, for example 'llada'."
        )
    base = denoise.make(plain, models)
    return base._replace(
        init=functools.partial(_init, base),
        propose=functools.partial(_propose, base, config.renew_every, plan.shift),
        update=functools.partial(_update, base),
        widths=_WIDTHS,
        keeps=True,
    )


def _init(
    base: Drafter, weights: Weights, request: Request, canvas: Canvas, view: Any, memory: Any
) -> State:
    place = base.init(weights, request, canvas, view, memory)
    # Its own array: the state is donated.
    return State(place=place, before=jnp.array(canvas.open, copy=True))


def _propose(
    base: Drafter,
    renew_every: int,
    shift: int,
    weights: Weights,
    state: State,
    request: Request,
    canvas: Canvas,
    view: Any,
) -> tuple[Window, State]:
    window, place = base.propose(weights, state.place, request, canvas, view)
    num_slots = canvas.tokens.shape[1]
    inside = jnp.arange(num_slots) < canvas.end[:, None]
    renewed = place.step <= 1
    if renew_every:
        renewed |= place.step % renew_every == 0
    enters = state.before
    if shift:
        # The first slot of a text is given, so nothing is lost at the end.
        enters |= jnp.pad(canvas.open[:, 1:], ((0, 0), (0, 1)))
    enters = inside & (enters | renewed[:, None])
    num = enters.sum(-1, dtype=jnp.int32)
    order = jnp.argsort(~enters, axis=1, stable=True).astype(jnp.int32)
    exists = jnp.arange(num_slots) < num[:, None]
    # The row of a slot that goes in; `scored` of the whole text names slots.
    row = jnp.cumsum(enters, axis=1, dtype=jnp.int32) - 1
    window = dataclasses.replace(
        window,
        tokens=jnp.take_along_axis(window.tokens, order, axis=1),
        num=num,
        cached=jnp.where(renewed, 0, canvas.end),
        scored=jnp.maximum(jnp.take_along_axis(row, window.scored, axis=1), 0),
        slots=jnp.where(exists, order, num_slots),
    )
    return window, State(place=place, before=canvas.open)


def _update(
    base: Drafter,
    weights: Weights,
    state: State,
    request: Request,
    canvas: Canvas,
    proposal: Window,
    verdict: Candidates,
    output: Any,
) -> State:
    place = base.update(weights, state.place, request, canvas, proposal, verdict, output)
    return dataclasses.replace(state, place=place)
