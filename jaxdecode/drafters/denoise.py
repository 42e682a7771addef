"""Blocks of undecided slots, from left to right, which the target itself fills in.

Idea: the target is asked what it would put into every undecided slot of the current block; a commit
rule says which of these become final. When a block has none left, the next one begins at the first
undecided slot after it.

What of the last steps is reused of keys and values:
    none    nothing: the whole text goes in at every step.
    prefix  everything before the block; renewed when a block begins. The text around a decided
            slot has changed since its keys were computed, so this is an approximation.
    dual    everything outside the block, renewed when a block begins; likewise.
    block   everything before the block, exactly: models whose blocks see nothing later. The pass
            that begins a block also takes in the one before it, which is complete now.
Every row renews its own; a row that does not keeps its cache while others renew theirs.

Cost: a pass over the text per step without reuse; over one block with it, plus one over the text
(two blocks, with `block`) per block.
Source: semi-autoregressive blocks of arXiv:2502.09992 section 2.4; reuse of arXiv:2505.22618
sections 3.1 and 3.2; exact reuse of arXiv:2503.09573 section 3.2.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Request, Window, pytree
from jaxdecode.errors import InputError
from jaxdecode.sampling import confidence

Reuse = Literal["auto", "none", "prefix", "dual", "block"]
# With `prefix` the rows that go in get fewer with every block: widths that are compiled.
_NUM_WIDTHS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        block_length: slots that are filled before those after them; 0 takes the block that the
            model was trained with, or the whole text.
        reuse: keys and values that later steps reuse: "none", "prefix", "dual" or "block"; "auto"
            is "block" for models with blocks and "none" for others.
    """

    block_length: int = 0
    reuse: Reuse = "auto"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("block_length", self.block_length, low=0)
        if self.reuse not in get_args(Reuse):
            raise InputError(
                f"reuse={self.reuse!r} is not known; use one of {', '.join(get_args(Reuse))}."
            )


@pytree
class State:
    """Where a row is.

    Attributes:
        start: first slot of its block.
        stop: the slot after its block.
        step: steps on this block.
        size: slots of the block that were undecided at its first step.
        calls: steps of the row.
        stored: slots whose keys and values are those of a complete text; `block` only.
        stale: the next step renews keys and values; `prefix` and `dual` only.
    """

    start: Int[Array, "B"]
    stop: Int[Array, "B"]
    step: Int[Array, "B"]
    size: Int[Array, "B"]
    calls: Int[Array, "B"]
    stored: Int[Array, "B"]
    stale: Bool[Array, "B"]


class Plan(NamedTuple):
    """What is fixed for a model and a config.

    Attributes:
        reuse: as in `Config`, never "auto".
        block: slots of a block; 0 is the whole text.
        aligned: blocks begin at multiples of their length, as the model sees them.
        shift: 1 if the row before a slot scores it.
        mask_token: the token of undecided slots.
    """

    reuse: str
    block: int
    aligned: bool
    shift: int
    mask_token: int


def make(config: Config, models: Models) -> Drafter:
    """The drafter.

    Raises:
        InputError: the model cannot fill undecided slots, or not with these blocks or this reuse.
    """
    plan = plan_of(config, models)
    return Drafter(
        init=functools.partial(_init, plan),
        propose=functools.partial(_propose, plan),
        update=functools.partial(_update, plan),
        widths=_widths(plan),
        prefilled=False,
        keeps=plan.reuse != "none",
    )


def plan_of(config: Config, models: Models) -> Plan:
    """What a config means for a model; errors as of `make`."""
    denoiser = models.target.config.denoiser
    if denoiser is None:
        raise InputError(
            "this model writes one token after the other and cannot fill undecided slots; load a "
            "masked diffusion model, or use method='ar'."
        )
    own, block = denoiser.block, config.block_length or denoiser.block
    reuse = config.reuse
    if reuse == "auto":
        reuse = "block" if own else "none"
    if own and block != own:
        raise InputError(
            f"block_length={block} does not fit: the model was trained with blocks of {own} "
            f"tokens; use block_length={own}."
        )
    if own and reuse in ("prefix", "dual"):
        raise InputError(
            f"reuse={reuse!r} is for models without blocks; this one has blocks of {own} tokens, "
            "whose reuse is exact: use reuse='block'."
        )
    if reuse == "block" and not own:
        raise InputError(
            "reuse='block' needs a model whose blocks see nothing later; this one sees the whole "
            "text at once: use 'prefix', 'dual' or 'none'."
        )
    if reuse in ("prefix", "dual") and not block:
        raise InputError(f"reuse={reuse!r} needs blocks; give block_length, for example 32.")
    return Plan(reuse, block, bool(own), int(denoiser.shifted), denoiser.mask_token)


def with_ends(
    config: Config,
    models: Models,
    lengths: tuple[int, ...],
    stops: Callable[..., Int[Array, "B"]],
) -> Drafter:
    """The drafter of blocks that end where their first step says, and keep their ends.

    Args:
        config: with the length that no block exceeds.
        models: the models.
        lengths: of likely blocks; with "dual", passes are compiled for these too.
        stops: (weights, state, window, candidates) -> the slot after each row's block, at most
            `state.stop`; what it says after the first step of a block counts for nothing.

    Raises:
        InputError: the model has blocks of its own, or as of `make`.
    """
    check_free_ends(models)
    base, plan = make(config, models), plan_of(config, models)
    shorter = {length + plan.shift for length in lengths} if plan.reuse == "dual" else set()
    return base._replace(
        focus=functools.partial(_focus, stops), widths=tuple(sorted({*shorter, *base.widths}))
    )


def check_free_ends(models: Models) -> None:
    """Whether blocks may end where a method wants them to.

    Raises:
        InputError: the model has blocks of its own.
    """
    denoiser = models.target.config.denoiser
    if denoiser is not None and denoiser.block:
        raise InputError(
            f"this model has blocks of {denoiser.block} tokens, which cannot end elsewhere; use "
            "a method with fixed blocks, for example 'fast_dllm'."
        )


def _focus(
    stops: Callable[..., Int[Array, "B"]],
    weights: Weights,
    state: State,
    request: Request,
    window: Window,
    candidates: Candidates,
) -> tuple[Window, State]:
    del request
    begins = state.step == 0
    stop = jnp.where(begins, stops(weights, state, window, candidates), state.stop)
    open = window.open & (confidence.slots(window) < stop[:, None])
    size = jnp.where(begins, open.sum(-1, dtype=jnp.int32), state.size)
    focused = dataclasses.replace(window, open=open, size=size)
    return focused, dataclasses.replace(state, stop=stop, size=size)


def _widths(plan: Plan) -> tuple[int, ...]:
    """Rows that passes are compiled for, besides the whole text."""
    if plan.reuse == "none":
        return ()
    numbers = {"dual": 1, "block": 2, "prefix": _NUM_WIDTHS}[plan.reuse]
    return tuple((plan.block << i) + plan.shift for i in range(numbers))


def _init(plan: Plan, weights: Weights, request: Request, canvas: Canvas, view: Any, memory: Any):
    del weights, request, view, memory
    return _first(plan, canvas)


@functools.partial(jax.jit, static_argnames="plan")
def _first(plan: Plan, canvas: Canvas) -> State:
    """The first state, as one program: a text may take few passes, and each operation costs."""
    # Each its own array: the state is donated.
    counts = {
        field.name: jnp.zeros_like(canvas.length)
        for field in dataclasses.fields(State)
        if field.name != "stale"
    }
    empty = State(**counts, stale=jnp.ones_like(canvas.done))
    return next_blocks(plan, empty, canvas, jnp.ones_like(canvas.done))


def next_blocks(plan: Plan, state: State, canvas: Canvas, begins: Bool[Array, "B"]) -> State:
    """The state with rows that begin a block at their first undecided slot."""
    num_slots = canvas.tokens.shape[1]
    size = plan.block or num_slots
    start = jnp.argmax(canvas.open, axis=1).astype(jnp.int32)
    if not plan.block:
        start = jnp.zeros_like(start)
    elif plan.aligned:
        start -= start % size
    stop = jnp.minimum(start + size, canvas.end)
    index = jnp.arange(num_slots)
    inside = (index >= start[:, None]) & (index < stop[:, None])
    num_open = (canvas.open & inside).sum(-1, dtype=jnp.int32)
    return dataclasses.replace(
        state,
        start=jnp.where(begins, start, state.start),
        stop=jnp.where(begins, stop, state.stop),
        step=jnp.where(begins, 0, state.step),
        size=jnp.where(begins, num_open, state.size),
        stale=begins,
    )


def _propose(
    plan: Plan, weights: Weights, state: State, request: Request, canvas: Canvas, view: Any
) -> tuple[Window, State]:
    del weights, request, view
    num_slots = canvas.tokens.shape[1]
    slot = state.start[:, None] + jnp.arange(plan.block or num_slots, dtype=jnp.int32)
    inside = (slot < state.stop[:, None]) & ~canvas.done[:, None]
    first, num, cached = _span(plan, state, canvas)
    entering = jnp.where(canvas.open, plan.mask_token, canvas.tokens)
    rows = first[:, None] + jnp.arange(num_slots, dtype=jnp.int32)
    scored = slot - plan.shift - first[:, None]
    window = Window(
        tokens=_take(entering, rows),
        first=first,
        num=num,
        cached=cached,
        start=state.start,
        scored=jnp.clip(scored, 0, num[:, None] - 1),
        open=_take(canvas.open, slot) & inside,
        step=state.step,
        size=state.size,
        calls=state.calls,
        mask_token=plan.mask_token,
        block=plan.block if plan.aligned else 0,
    )
    return window, state


def _span(
    plan: Plan, state: State, canvas: Canvas
) -> tuple[Int[Array, "B"], Int[Array, "B"], Int[Array, "B"]]:
    """First slot that goes in, how many do, and the cached slots that are seen."""
    zero = jnp.zeros_like(state.start)
    if plan.reuse == "none":
        return zero, canvas.end, zero
    before = jnp.maximum(state.start - plan.shift, 0)
    if plan.reuse == "block":
        first = jnp.minimum(state.stored, before)
        return first, state.stop - first, first
    first = jnp.where(state.stale, 0, before)
    if plan.reuse == "prefix":
        return first, canvas.end - first, first
    num = jnp.where(state.stale, canvas.end, state.stop - first)
    return first, num, jnp.where(state.stale, 0, canvas.end)


def _take(array: Array, slots: Int[Array, "B N"]) -> Array:
    return jnp.take_along_axis(array, slots, axis=1, mode="clip")


def _update(
    plan: Plan,
    weights: Weights,
    state: State,
    request: Request,
    canvas: Canvas,
    proposal: Window,
    verdict: Candidates,
    output: Any,
) -> State:
    del weights, request, verdict, output
    slot = proposal.start[:, None] + jnp.arange(proposal.open.shape[1], dtype=jnp.int32)
    left = _take(canvas.open, slot) & (slot < state.stop[:, None])
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        calls=state.calls + 1,
        # All before this block was complete when it went in, if it did.
        stored=jnp.maximum(state.stored, state.start),
    )
    return next_blocks(plan, state, canvas, ~left.any(-1) & ~canvas.done)
