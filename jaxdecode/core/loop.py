"""The one loop: propose, target forward, verify, commit. Commit is the only writer.

    prompt - prefill -> [ propose -> target forward -> verify -> commit ]* -> tokens, trace, stats

The loop names no method; its parts are handed in as bundles of pure functions.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdecode.core import masks
from jaxdecode.core.protocols import Method, Target, Weights
from jaxdecode.core.types import (
    MAX_LENGTH,
    RUNNING,
    STOP_STRING,
    STOP_TOKEN,
    Canvas,
    DecodeState,
    Proposal,
    Request,
    Stats,
    Verdict,
)


@functools.partial(jax.jit, static_argnames=("target", "method"), donate_argnames="state")
def run(
    weights: Weights,
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
        live, lambda state: step(weights, request, state, target=target, method=method), state
    )


def step(
    weights: Weights, request: Request, state: DecodeState, *, target: Target, method: Method
) -> DecodeState:
    """One round of propose, verify, commit for all rows; done rows do not change."""
    canvas = state.canvas
    view = method.cache.read(state.cache)
    proposal, drafter_state = method.drafter.propose(weights, state.drafter, request, canvas, view)

    def decide(width: int):
        """Everything that reads the proposal, on its first `width` nodes."""
        part = narrow(proposal, width)
        program = masks.tree_program(
            cached=canvas.length, parent=part.parent, depth=part.depth, valid=part.valid
        )
        taps = tuple(dict.fromkeys(method.drafter.taps + method.verifier.taps))
        if method.drafter.score is not None:
            output = method.drafter.score(weights, part, program, view, taps)
        else:
            entering = part.tokens if part.superposed is None else part.superposed.blend
            output = target.forward(weights.target, entering, program, view, taps)
        output = dataclasses.replace(output, logits=target.logits(weights.target, output.hidden))
        verdict = method.verifier.verify(weights, request, canvas, part, output)
        committed = commit(request, canvas, verdict, state.step)
        updated = method.drafter.update(
            weights, drafter_state, request, committed, part, verdict, output
        )
        verdict = _pad_path(verdict, proposal.max_depth + 1)
        return committed, verdict, method.cache.select(output.rows, verdict.path), updated

    widths = method.drafter.widths or (proposal.tokens.shape[1],)
    if len(widths) == 1:
        committed, verdict, rows, drafter_state = decide(widths[0])
    else:
        branches = [functools.partial(decide, width) for width in widths]
        chosen = jnp.sum(jnp.asarray(widths[:-1]) < _width_needed(canvas, proposal))
        committed, verdict, rows, drafter_state = jax.lax.switch(chosen, branches)
    # Token ids are never negative, so this adds nothing; but it makes the write wait for the
    # verdict. Without that XLA may write before the last read, and copies the whole cache first.
    start = canvas.length + jnp.minimum(verdict.tokens[:, 0], 0)
    return DecodeState(
        canvas=committed,
        cache=method.cache.write(state.cache, rows, start),
        drafter=drafter_state,
        stats=_count(state.stats, canvas, committed, proposal.valid),
        step=state.step + 1,
    )


def narrow(proposal: Proposal, width: int) -> Proposal:
    """The first `width` nodes of a proposal."""
    if width == proposal.tokens.shape[1]:
        return proposal
    part = jax.tree.map(lambda array: array[:, :width], proposal)
    return dataclasses.replace(part, max_depth=min(proposal.max_depth, width - 1))


def _width_needed(canvas: Canvas, proposal: Proposal) -> Int[Array, ""]:
    """Nodes up to the last valid one of any live row."""
    index = jnp.arange(1, proposal.tokens.shape[1] + 1, dtype=jnp.int32)
    used = proposal.valid & ~canvas.done[:, None]
    return jnp.max(jnp.where(used, index, 1))


def _pad_path(verdict: Verdict, length: int) -> Verdict:
    """The same verdict with room for a path of `length` nodes; what is added is meaningless."""

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, length - x.shape[1])))

    return dataclasses.replace(
        verdict,
        tokens=pad(verdict.tokens),
        logprob=pad(verdict.logprob),
        path=pad(verdict.path),
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
