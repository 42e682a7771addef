"""The only writer of a canvas: a path of a tree, or any subset of the slots of a window.

Tokens past a stop token, a completed stop string or the row's end never count as text, so nothing
can leak.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdecode.core.types import (
    MAX_LENGTH,
    RUNNING,
    STOP_STRING,
    STOP_TOKEN,
    Candidates,
    Canvas,
    Decision,
    Request,
    Verdict,
    Window,
)


def commit(request: Request, canvas: Canvas, verdict: Verdict, step: Int[Array, "B"]) -> Canvas:
    """Writes the accepted path of every live row, up to its first stop.

    Args:
        request: what ends a row.
        canvas: before the step.
        verdict: what the target decided.
        step: earlier steps of each row.
    """
    return jax.vmap(_commit_row, in_axes=(None, 0, 0, 0))(request, canvas, verdict, step)


def _commit_row(request: Request, row: Canvas, verdict: Verdict, step: Int[Array, ""]) -> Canvas:
    (path_length,) = verdict.tokens.shape
    index = jnp.arange(path_length, dtype=jnp.int32)
    slot = row.length + 1 + index
    states, matched = _stop_states(request, row.stop_state, verdict.tokens)
    stop_token = (verdict.tokens[:, None] == request.stop_tokens).any(-1)
    ends = stop_token | matched | (slot + 1 >= row.end)
    # Keep tokens up to and including the first that ends the row.
    ended_before = jnp.cumsum(ends) - ends > 0
    keep = (index <= verdict.num_accepted) & ~ended_before & ~row.done
    num_committed = keep.sum(dtype=jnp.int32)
    last = jnp.maximum(num_committed - 1, 0)
    reason = _reason(stop_token[last], matched[last])
    done = row.done | ends[last]
    finish = jnp.where(row.done, row.finish, jnp.where(ends[last], reason, RUNNING))
    # Dropped entries point past the canvas; a negative index would wrap around.
    target_slot = jnp.where(keep, slot, row.tokens.shape[0])

    def put(array, value):
        return array.at[target_slot].set(value, mode="drop")

    return Canvas(
        tokens=put(row.tokens, verdict.tokens),
        open=put(row.open, False),
        length=row.length + num_committed,
        end=row.end,
        done=done,
        finish=finish.astype(jnp.int32),
        stop_state=jnp.where(row.done, row.stop_state, states[last]),
        commit_step=put(row.commit_step, step),
        logprob=put(row.logprob, verdict.logprob),
    )


def slots(window: Window) -> Int[Array, "... W"]:
    """Places on the canvas of the slots that a window, or one row of it, may decide."""
    if window.decides is not None:
        return window.decides
    return window.start[..., None] + jnp.arange(window.open.shape[-1], dtype=jnp.int32)


def fill(
    request: Request,
    canvas: Canvas,
    window: Window,
    candidates: Candidates,
    decision: Decision,
    step: Int[Array, "B"],
) -> Canvas:
    """Writes the chosen candidates of every live row into its window, and reopens slots.

    What is decided before a row's first undecided slot becomes its text, up to the first stop;
    slots of the prompt, and what is text already, are never reopened. `step` counts the earlier
    steps of each row.
    """
    row = jax.vmap(_fill_row, in_axes=(None, 0, 0, 0, 0, 0))
    return row(request, canvas, window, candidates, decision, step)


def _fill_row(
    request: Request,
    row: Canvas,
    window: Window,
    candidates: Candidates,
    decision: Decision,
    step: Int[Array, ""],
) -> Canvas:
    (num_slots,) = row.tokens.shape
    slot = slots(window)
    put = decision.commit & window.open & ~row.done & (slot < row.end)
    # Dropped entries point past the canvas; a negative index would wrap around.
    where = jnp.where(put, slot, num_slots)
    now_open = row.open.at[where].set(False, mode="drop")
    unfinished = (window.open & ~put).any()
    if decision.reopen is not None:
        given = row.commit_step.at[slot].get(mode="fill", fill_value=-1) < 0
        again = decision.reopen & ~window.open & ~given & ~row.done & (slot > row.length)
        now_open = now_open.at[jnp.where(again, slot, num_slots)].set(True, mode="drop")
        unfinished |= again.any()
    filled = dataclasses.replace(
        row,
        tokens=row.tokens.at[where].set(candidates.tokens, mode="drop"),
        open=now_open,
        commit_step=row.commit_step.at[where].set(step, mode="drop"),
        logprob=row.logprob.at[where].set(candidates.logprob, mode="drop"),
    )
    # Slots from the row's end on are open for ever, so there is a first one.
    final = jnp.argmax(now_open)
    if not decision.settles:
        final = jnp.where(unfinished, jnp.minimum(window.start, final), final)
    return _settle(request, filled, jnp.maximum(final - 1, row.length))


def _settle(request: Request, row: Canvas, length: Int[Array, ""]) -> Canvas:
    """Makes everything up to slot `length` text, or up to the first stop in it."""
    index = jnp.arange(row.tokens.shape[0], dtype=jnp.int32)
    new = (index > row.length) & (index <= length) & ~row.done
    # A stop token of a given text does not end it: only what the model wrote does.
    stop_token = new & (row.tokens[:, None] == request.stop_tokens).any(-1) & (row.commit_step >= 0)
    states, matched = _stop_states(request, row.stop_state, row.tokens, new)
    ends = stop_token | (matched & new) | (new & (index + 1 >= row.end))
    first = jnp.argmax(ends)
    ended = ends.any()
    length = jnp.where(ended, first, jnp.where(row.done, row.length, length))
    reason = _reason(stop_token[first], matched[first] & new[first])
    return dataclasses.replace(
        row,
        length=length.astype(jnp.int32),
        done=row.done | ended,
        finish=jnp.where(ended, reason, row.finish).astype(jnp.int32),
        stop_state=jnp.where(row.done, row.stop_state, states[length]),
    )


def _reason(stop_token: Bool[Array, ""], matched: Bool[Array, ""]) -> Int[Array, ""]:
    return jnp.where(stop_token, STOP_TOKEN, jnp.where(matched, STOP_STRING, MAX_LENGTH))


def _stop_states(
    request: Request,
    state: Int[Array, ""],
    tokens: Int[Array, "P"],
    counts: Bool[Array, "P"] | None = None,
) -> tuple[Int[Array, "P"], Bool[Array, "P"]]:
    """State of the stop-string automaton after each token, and whether a string is complete.

    Tokens that do not count leave the state as it was.
    """
    table = request.stop_table
    if table is None:
        return jnp.broadcast_to(state, tokens.shape), jnp.zeros(tokens.shape, bool)

    def advance(state, entry):
        token, seen = entry
        state = jnp.where(seen, table[state, token].astype(jnp.int32), state)
        return state, state

    counts = jnp.ones(tokens.shape, bool) if counts is None else counts
    _, states = jax.lax.scan(advance, state, (tokens, counts))
    return states, states == table.shape[0] - 1
