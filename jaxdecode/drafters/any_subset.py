"""Undecided slots in a fixed order, each told by those before it; the next ones are drafted.

Idea: a masked model that reads a text by turns is an autoregressive model of any subset of its
slots. What is given is seen by all; an undecided slot has a place in an order, and its law is that
of a mask token at its position which sees only what stands before it in the order. One pass can
therefore score several slots with drafts before them filled in, as a causal model scores a chain.

Rows of a pass: the text, whose rows see what is given, what is before them in the order, and
themselves; and one mask token for each of the next 2 num_draft + 1 slots of the order, which nobody
else sees. Those of the drafted slots and of the first slot after them verify. What the target draws
in the others, and in slots after a refused draft, are the drafts of the next pass: a draft law may
depend on anything that is past.

Exactness: the order and the mask define the joint law; `verifiers.ranked` says how it is kept. That
law is a model's own if it was trained to read so; other masked models are used to mask tokens
in every undecided slot, and are read outside of what they know.
Cost: the text and 2 num_draft + 1 rows per pass, of which those are scored; a law over the
vocabulary per draft is kept. Every pass decides at least one slot, at most num_draft + 1.
Source: arXiv:2504.20456, sections 3 and 4 (two-stream masks, ASSD). There a pass drafts and another
one verifies, with k slots per two passes at most; here both are one pass, and no slot is free.
"""

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Drafted, Reading, Request, Window, pytree
from jaxdecode.drafters import denoise
from jaxdecode.errors import InputError
from jaxdecode.sampling import confidence, noise, warp
from jaxdecode.trees import walk

Order = Literal["left_to_right", "random"]
# The turn of rows that nobody sees.
_NEVER = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: slots that are drafted; 0 decides one slot per pass.
        order: in which undecided slots are told: "left_to_right", or "random", which is drawn once
            per row.
    """

    num_draft: int = 5
    order: Order = "left_to_right"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_draft", self.num_draft, low=0, high=63)
        checks.choice("order", self.order, get_args(Order))


@pytree
class State:
    """Where a row is.

    Attributes:
        place: of each slot in the order, from 0; -1 for what is given.
        tokens: drafts of the next slots in the order.
        probs: the laws they were drawn from.
        calls: passes of the row; there are drafts from the second on.
    """

    place: Int[Array, "B L"]
    tokens: Int[Array, "B J"]
    probs: Float[Array, "B J V"]
    calls: Int[Array, "B"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter.

    Raises:
        InputError: the model cannot fill undecided slots, has blocks, or is shifted.
    """
    denoise.plan_of(denoise.Config(reuse="none"), models)
    how, size = models.target.config.denoiser, models.target.config.vocab_size
    if how.block or how.shifted:
        kind = f"has blocks of {how.block} tokens" if how.block else "has shifted scores"
        raise InputError(
            f"this model {kind}, but slots are told in any order only by models that see the whole "
            "text and score each slot in its own row; use another method that fills slots, for "
            "example 'llada'."
        )
    return Drafter(
        init=functools.partial(_init, config, size),
        propose=functools.partial(_propose, how.mask_token),
        update=_update,
        prefilled=False,
        keeps=False,
    )


def _init(
    config: Config,
    size: int,
    weights: Weights,
    request: Request,
    canvas: Canvas,
    view: Any,
    memory: Any,
) -> State:
    del weights, view, memory
    batch, num_slots = canvas.tokens.shape
    undecided = _undecided(canvas)
    score = -jnp.arange(num_slots, dtype=jnp.float32)
    if config.order == "random":
        slot = jnp.arange(num_slots, dtype=jnp.int32)
        score = jax.vmap(lambda key: noise.turns(key, slot, jnp.int32(0)))(request.key)
    score = jnp.broadcast_to(score, undecided.shape)
    place = confidence.rank(score, undecided).astype(jnp.int32)
    return State(
        place=jnp.where(undecided, place, -1),
        tokens=jnp.zeros((batch, config.num_draft), jnp.int32),
        probs=jnp.zeros((batch, config.num_draft, size), jnp.float32),
        calls=jnp.zeros(batch, jnp.int32),
    )


def _undecided(canvas: Canvas) -> Bool[Array, "B L"]:
    """Slots that are to be decided; those from a row's end on are open for ever."""
    return canvas.open & (jnp.arange(canvas.open.shape[1]) < canvas.end[:, None])


def _propose(
    mask_token: int, weights: Weights, state: State, request: Request, canvas: Canvas, view: Any
) -> tuple[Window, State]:
    del weights, request, view
    batch, num_slots = canvas.tokens.shape
    num_draft = state.tokens.shape[1]
    ahead = jnp.arange(2 * num_draft + 1, dtype=jnp.int32)
    size = (state.place >= 0).sum(-1, dtype=jnp.int32)
    first = size - _undecided(canvas).sum(-1, dtype=jnp.int32)
    turn = first[:, None] + ahead
    exists = turn < size[:, None]
    slot = jnp.argmax(state.place[:, None] == turn[..., None], axis=-1)
    slot = jnp.where(exists, slot, num_slots).astype(jnp.int32)
    valid = exists[:, :num_draft] & (state.calls > 0)[:, None]
    num = valid.sum(-1, dtype=jnp.int32)[:, None]
    text = jnp.where(canvas.open, mask_token, canvas.tokens)
    text = _put(text, jnp.where(valid, slot[:, :num_draft], num_slots), state.tokens)
    own = jnp.arange(num_slots, dtype=jnp.int32)
    own = jnp.where(own < canvas.end[:, None], own, num_slots)
    queries = jnp.full_like(turn, mask_token), jnp.full_like(turn, _NEVER)
    window = Window(
        tokens=jnp.concatenate([queries[0], text], axis=1),
        first=jnp.zeros_like(first),
        num=canvas.end + len(ahead),
        cached=jnp.zeros_like(first),
        start=jnp.zeros_like(first),
        scored=jnp.broadcast_to(ahead, turn.shape),
        open=exists & (ahead <= num) & ~canvas.done[:, None],
        step=state.calls,
        size=size,
        calls=state.calls,
        mask_token=mask_token,
        slots=jnp.concatenate([slot, own], axis=1),
        decides=slot,
        reading=Reading(
            turn=jnp.concatenate([queries[1], state.place], axis=1),
            # What is behind the drafts is not there to be seen.
            until=jnp.concatenate(
                [jnp.minimum(turn, first[:, None] + num) - 1, state.place], axis=1
            ),
        ),
        drafted=Drafted(tokens=state.tokens, valid=valid, probs=state.probs),
    )
    return window, state


def _put(text: Int[Array, "B L"], slot: Int[Array, "B J"], tokens: Int[Array, "B J"]) -> Array:
    return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(text, slot, tokens)


def _update(
    weights: Weights,
    state: State,
    request: Request,
    canvas: Canvas,
    proposal: Window,
    verdict: Candidates,
    output: Any,
) -> State:
    """Draws behind what was decided are the drafts of the next pass."""
    del weights, canvas, proposal, output
    assert verdict.picked is not None
    num_draft = state.tokens.shape[1]
    next_one = verdict.picked.sum(-1, dtype=jnp.int32)[:, None]
    index = next_one + jnp.arange(num_draft, dtype=jnp.int32)

    def law(with_noise, key, sampling, scores):
        del with_noise, key
        greedy = sampling.temperature < warp.GREEDY_BELOW
        return jax.vmap(lambda row: walk.probs_of(warp.warp(row, sampling, None), greedy))(scores)

    scores = jnp.take_along_axis(verdict.scores, index[..., None], axis=1)
    return State(
        place=state.place,
        tokens=jnp.take_along_axis(verdict.tokens, index, axis=1),
        probs=walk.by_row(law, request, scores),
        calls=state.calls + 1,
    )
