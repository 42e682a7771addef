"""The one loop: propose, target forward, verify, commit. Commit is the only writer.

    prompt - prefill -> [ propose -> target forward -> verify -> commit ]* -> tokens, trace, stats

The loop names no method; its parts are handed in as bundles of pure functions.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdecode.core import masks
from jaxdecode.core.protocols import Cache, Method, Rows, Target
from jaxdecode.core.types import (
    MAX_LENGTH,
    RUNNING,
    STOP_STRING,
    STOP_TOKEN,
    Canvas,
    DecodeState,
    Request,
    Stats,
    Verdict,
)


@functools.partial(jax.jit, static_argnames="target")
def prefill(
    params: Any,
    tokens: Int[Array, "B C"],
    start: Int[Array, ""],
    num_new: Int[Array, "B"],
    cached: Rows | None,
    *,
    target: Target,
) -> Rows:
    """Keys and values of one chunk of the prompts: C slots from `start`, the same for all rows.

    Args:
        params: target parameters.
        tokens: prompt tokens of the chunk; anything past a row's end. Rows whose prompt ends
            earlier get garbage there, which no mask shows and later steps overwrite.
        start: first slot of the chunk.
        num_new: tokens of each row that lie in this chunk.
        cached: rows of earlier chunks, or None for the first, which then compiles independently
            of the cache's size.
        target: model functions.
    """
    batch, width = tokens.shape
    offset = jnp.broadcast_to(start, (batch,))
    positions = offset[:, None] + jnp.arange(width, dtype=jnp.int32)
    program = masks.MaskProgram(cached=offset, positions=positions, num_new=num_new)
    return target.forward(params, tokens, program, cached).rows


@functools.partial(jax.jit, static_argnames="cache", donate_argnames="state")
def store(state: Any, rows: Rows, start: Int[Array, ""], *, cache: Cache) -> Any:
    """Writes a prefilled chunk; the cache is donated."""
    batch = jax.tree.leaves(rows)[0].shape[-4]
    return cache.write(state, rows, jnp.broadcast_to(start, (batch,)))


@functools.partial(jax.jit, static_argnames=("target", "method"), donate_argnames="state")
def run(
    params: Any,
    request: Request,
    state: DecodeState,
    num_steps: Int[Array, ""],
    *,
    target: Target,
    method: Method,
) -> DecodeState:
    """At most `num_steps` steps; ends early when every row is done.

    The caller chooses how often it looks: streaming asks for a few steps, a batch for many.
    """
    last = state.step + num_steps

    def live(state: DecodeState) -> Bool[Array, ""]:
        return ~state.canvas.done.all() & (state.step < last)

    return jax.lax.while_loop(
        live, lambda state: step(params, request, state, target=target, method=method), state
    )


def step(
    params: Any, request: Request, state: DecodeState, *, target: Target, method: Method
) -> DecodeState:
    """One round of propose, verify, commit for all rows; done rows do not change."""
    canvas = state.canvas
    proposal, drafter_state = method.drafter.propose(params, state.drafter, request, canvas)
    program = masks.tree_program(
        cached=canvas.length, parent=proposal.parent, depth=proposal.depth, valid=proposal.valid
    )
    view = method.cache.read(state.cache)
    output = target.forward(params, proposal.tokens, program, view, method.drafter.taps)
    logits = target.logits(params, output.hidden)
    verdict = method.verifier.verify(request, canvas, proposal, logits)
    committed = commit(request, canvas, verdict, state.step)
    rows = method.cache.select(output.rows, verdict.path)
    # Token ids are never negative, so this adds nothing; but it makes the write wait for the
    # verdict. Without that XLA may write before the last read, and copies the whole cache first.
    start = canvas.length + jnp.minimum(verdict.tokens[:, 0], 0)
    stats = _count(state.stats, canvas, committed, proposal.valid)
    drafter_state = method.drafter.update(
        params, drafter_state, request, committed, proposal, verdict, output
    )
    return DecodeState(
        canvas=committed,
        cache=method.cache.write(state.cache, rows, start),
        drafter=drafter_state,
        stats=stats,
        step=state.step + 1,
    )


def commit(request: Request, canvas: Canvas, verdict: Verdict, step: Int[Array, ""]) -> Canvas:
    """Writes the accepted tokens of every live row, up to its first stop.

    Nothing else writes a canvas. Tokens past a stop token, a completed stop string or the row's
    end are never written, so nothing can leak.
    """
    return jax.vmap(_commit_row, in_axes=(None, 0, 0, None))(request, canvas, verdict, step)


def _commit_row(request: Request, row: Canvas, verdict: Verdict, step: Int[Array, ""]) -> Canvas:
    (path_length,) = verdict.tokens.shape
    index = jnp.arange(path_length, dtype=jnp.int32)
    slot = row.length + 1 + index
    states, matched = _stop_states(request, row.stop_state, verdict.tokens)
    stop_token = (verdict.tokens[:, None] == request.stop_tokens).any(-1)
    full = slot + 1 >= row.end
    ends = stop_token | matched | full
    # Keep tokens up to and including the first that ends the row.
    ended_before = jnp.cumsum(ends) - ends > 0
    keep = (index <= verdict.num_accepted) & ~ended_before & ~row.done
    num_committed = keep.sum(dtype=jnp.int32)
    last = jnp.maximum(num_committed - 1, 0)
    reason = jnp.where(
        stop_token[last], STOP_TOKEN, jnp.where(matched[last], STOP_STRING, MAX_LENGTH)
    )
    done = row.done | ends[last]
    finish = jnp.where(row.done, row.finish, jnp.where(ends[last], reason, RUNNING))
    # Dropped entries point past the canvas; a negative index would wrap around.
    target_slot = jnp.where(keep, slot, row.tokens.shape[0])
    put = lambda array, value: array.at[target_slot].set(value, mode="drop")  # noqa: E731
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


def _stop_states(
    request: Request, state: Int[Array, ""], tokens: Int[Array, "P"]
) -> tuple[Int[Array, "P"], Bool[Array, "P"]]:
    """State of the stop-string automaton after each token, and whether a string is complete."""
    table = request.stop_table
    if table is None:
        return jnp.broadcast_to(state, tokens.shape), jnp.zeros(tokens.shape, bool)

    def advance(state, token):
        state = table[state, token].astype(jnp.int32)
        return state, state

    _, states = jax.lax.scan(advance, state, tokens)
    return states, states == table.shape[0] - 1


def _count(stats: Stats, before: Canvas, after: Canvas, valid: Bool[Array, "B N"]) -> Stats:
    live = (~before.done).astype(jnp.int32)
    return Stats(
        nfe=stats.nfe + live,
        num_accepted=stats.num_accepted + live * (after.length - before.length - 1),
        tokens_forwarded=stats.tokens_forwarded + live * valid.sum(-1, dtype=jnp.int32),
    )
