"""The one loop: propose, target forward, verify, commit.

    prompt - prefill -> [ propose -> target forward -> verify -> commit ]* -> tokens, trace, stats

The loop names no method; its parts are handed in as bundles of pure functions. What is proposed
decides what can be committed: a path of a tree, or any subset of the slots of a window.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdecode.core import grammar, masks
from jaxdecode.core.commit import commit, fill
from jaxdecode.core.protocols import Method, Target, TargetOutput, Weights
from jaxdecode.core.record import Guesses, Record, record_of
from jaxdecode.core.types import Canvas, DecodeState, Proposal, Request, Stats, Verdict, Window
from jaxdecode.errors import InputError

P = TypeVar("P", Proposal, Window)


@functools.partial(jax.jit, static_argnames=("target", "method"), donate_argnames="state")
def run(
    weights: Weights,
    request: Request,
    state: DecodeState,
    num_steps: Int[Array, ""],
    *,
    target: Target,
    method: Method,
    enough: Int[Array, ""] | None = None,
) -> DecodeState:
    """At most `num_steps` steps; ends early when every row is done, or `enough` rows are.

    The caller chooses how often it looks: streaming asks for a few steps, a batch for many, and
    who has new rows for the places of finished ones as soon as there are such places.
    """
    last = state.step + num_steps

    def live(state: DecodeState) -> Bool[Array, ""]:
        done = state.canvas.done
        ended = done.all() if enough is None else done.sum() >= enough
        return ~ended & (state.step < last)

    return jax.lax.while_loop(
        live, lambda state: step(weights, request, state, target=target, method=method), state
    )


@functools.partial(jax.jit, static_argnames=("target", "method"), donate_argnames="state")
def run_recorded(
    weights: Weights, request: Request, state: DecodeState, *, target: Target, method: Method
) -> tuple[DecodeState, Record]:
    """One step as a program of its own, with the record of what it did; for traces."""
    after, record = _step(weights, request, state, target, method, recorded=True)
    assert record is not None
    return after, record


def step(
    weights: Weights, request: Request, state: DecodeState, *, target: Target, method: Method
) -> DecodeState:
    """One round of propose, verify, commit for all rows; done rows do not change."""
    return _step(weights, request, state, target, method)[0]


def _step(
    weights: Weights,
    request: Request,
    state: DecodeState,
    target: Target,
    method: Method,
    recorded: bool = False,
) -> tuple[DecodeState, Record | None]:
    """The step, and its record if there shall be one; else the program holds nothing of it."""
    view = method.cache.read(state.cache)
    proposal, drafter_state = method.drafter.propose(
        weights, state.drafter, request, state.canvas, view
    )
    _check_kind(proposal, method)
    before = state.canvas
    state = dataclasses.replace(state, drafter=drafter_state)
    widths = _widths(proposal, method)
    fits = jnp.sum(jnp.array(widths[:-1], jnp.int32) < _width_needed(before, proposal))
    if isinstance(proposal, Window):
        parts = [narrow(proposal, width) for width in widths]
        fill_in = functools.partial(_fill, weights, request, target, method)
        state, decided = _in_place(fill_in, parts, fits, state)
    else:
        longest = proposal.max_depth + 1
        walk = functools.partial(_walk, weights, request, target, method, longest, state, view)
        walks = [functools.partial(walk, narrow(proposal, width)) for width in widths]
        canvas, drafter_state, new, decided = jax.lax.switch(fits, walks)
        cache = method.cache.write(state.cache, *new)
        state = dataclasses.replace(state, canvas=canvas, drafter=drafter_state, cache=cache)
    after = dataclasses.replace(
        state, stats=_count(state.stats, before, state.canvas, proposal), step=state.step + 1
    )
    return after, record_of(before, state.canvas, proposal, decided) if recorded else None


def _widths(proposal: Proposal | Window, method: Method) -> tuple[int, ...]:
    num_nodes = proposal.tokens.shape[1]
    return (*(width for width in method.drafter.widths if width < num_nodes), num_nodes)


def _in_place(
    fill_in: Callable[[Window, DecodeState], tuple[DecodeState, Guesses]],
    parts: Sequence[Window],
    chosen: Int[Array, ""],
    state: DecodeState,
) -> tuple[DecodeState, Guesses]:
    """The part of this number filled in; the guesses are its own.

    Each part has a loop of one turn or none, for XLA copies a cache that a branch changes.
    """
    if len(parts) == 1:
        return fill_in(parts[0], state)
    held = state, jax.tree.map(jnp.zeros_like, jax.eval_shape(fill_in, parts[0], state)[1])
    for number, part in enumerate(parts):

        def waits(turn: Any, number: int = number) -> Bool[Array, ""]:
            return turn[0] == number

        def taken(turn: Any, part: Window = part) -> Any:
            return jnp.int32(-1), fill_in(part, turn[1][0])

        _, held = jax.lax.while_loop(waits, taken, (chosen, held))
    return held


def _check_kind(proposal: Proposal | Window, method: Method) -> None:
    """Refuses a rule for windows beside a drafter of trees, and the reverse."""
    is_window = isinstance(proposal, Window)
    if is_window != method.verifier.windows or is_window != (method.commit is not None):
        kinds = ("a window", "trees") if is_window else ("a tree", "windows")
        raise InputError(
            f"the drafter proposes {kinds[0]}, but the verifier or the commit rule is made for "
            f"{kinds[1]}; `jaxdecode methods` lists the combinations that fit"
        )


def _walk(
    weights: Weights,
    request: Request,
    target: Target,
    method: Method,
    longest: int,
    state: DecodeState,
    view: Any,
    proposal: Proposal,
) -> tuple[Canvas, Any, tuple[Any, Int[Array, "B"]], Verdict]:
    """Scores a tree and commits the accepted path; what is to be cached is returned.

    It is written outside, once for all widths: within a branch XLA would copy the cache.
    """
    canvas = state.canvas
    program = masks.tree_program(
        cached=canvas.length, parent=proposal.parent, depth=proposal.depth, valid=proposal.valid
    )
    entering = proposal.tokens if proposal.superposed is None else proposal.superposed.blend
    output = _forward(weights, proposal, entering, program, view, target, method)
    logits = target.logits(weights.target, output.hidden)
    allowed = grammar.masks(request, canvas, proposal, logits.shape[-1])
    output = dataclasses.replace(output, logits=logits, allowed=allowed)
    verdict = method.verifier.verify(weights, request, canvas, proposal, output)
    committed = commit(request, canvas, verdict, state.stats.nfe)
    updated = method.drafter.update(
        weights, state.drafter, request, committed, proposal, verdict, output
    )
    verdict = _pad_path(verdict, longest)
    start = _after(canvas.length, verdict.tokens)
    new = method.cache.select(output.rows, verdict.path), start
    return committed, updated, new, verdict


def _fill(
    weights: Weights,
    request: Request,
    target: Target,
    method: Method,
    window: Window,
    state: DecodeState,
) -> tuple[DecodeState, Guesses]:
    """Scores a window, commits the slots that the rule chooses, and caches the window's rows.

    Widths differ in how many rows they would cache, so that every width writes its own.
    """
    assert method.commit is not None  # _check_kind
    view = method.cache.read(state.cache)
    program = masks.window_program(window)
    output = _forward(weights, window, window.tokens, program, view, target, method)
    hidden = jnp.take_along_axis(output.hidden, window.scored[:, :, None], axis=1)
    logits = target.logits(weights.target, hidden)
    allowed = grammar.fits(request, state.canvas, window, logits.shape[-1])
    output = dataclasses.replace(output, logits=logits, allowed=allowed)
    candidates = method.verifier.verify(weights, request, state.canvas, window, output)
    drafter_state = state.drafter
    if method.drafter.focus is not None:
        window, drafter_state = method.drafter.focus(
            weights, drafter_state, request, window, candidates
        )
    decision = method.commit.select(weights, request, state.canvas, window, candidates)
    chosen = grammar.together(request, state.canvas, window, candidates, decision.commit)
    decision = dataclasses.replace(decision, commit=chosen)
    filled = fill(request, state.canvas, window, candidates, decision, state.stats.nfe)
    updated = method.drafter.update(
        weights, drafter_state, request, filled, window, candidates, output
    )
    if window.slots is None:
        first = _after(window.first, candidates.tokens)
        cache = method.cache.write(state.cache, output.rows, first, window.num)
    else:
        slots = _after(window.slots, candidates.tokens)
        cache = method.cache.put(state.cache, output.rows, slots)
    guesses = Guesses(open=window.open, tokens=candidates.tokens, logprob=candidates.logprob)
    return dataclasses.replace(state, canvas=filled, drafter=updated, cache=cache), guesses


def _after(slots: Int[Array, "B ..."], tokens: Int[Array, "B W"]) -> Int[Array, "B ..."]:
    """The same slots, known once the tokens are.

    Token ids are never negative, so this adds nothing; but it makes a write to the cache wait for
    the verdict. Without that XLA may write before the last read, and copies the whole cache first.
    """
    first = jnp.minimum(tokens[:, 0], 0)
    return slots + first.reshape(-1, *[1] * (slots.ndim - 1))


def _forward(
    weights: Weights,
    proposal: Proposal | Window,
    entering: Any,
    program: masks.MaskProgram,
    view: Any,
    target: Target,
    method: Method,
) -> TargetOutput:
    """The target's pass over a proposal, or the drafter's own way of scoring it."""
    taps = tuple(dict.fromkeys(method.drafter.taps + method.verifier.taps))
    if method.drafter.score is not None:
        return method.drafter.score(weights, proposal, program, view, taps)
    return target.forward(weights.target, entering, program, view, taps)


def narrow(proposal: P, width: int) -> P:
    """The first `width` nodes of a proposal."""
    if width == proposal.tokens.shape[1]:
        return proposal
    if isinstance(proposal, Window):
        rows = {n: getattr(proposal, n) for n in ("tokens", "contrast", "slots", "reading")}
        return dataclasses.replace(proposal, **jax.tree.map(lambda array: array[:, :width], rows))
    part = jax.tree.map(lambda array: array[:, :width], proposal)
    return dataclasses.replace(part, max_depth=min(proposal.max_depth, width - 1))


def _width_needed(canvas: Canvas, proposal: Proposal | Window) -> Int[Array, ""]:
    """Nodes up to the last valid one of any live row."""
    if isinstance(proposal, Window):
        return jnp.max(jnp.where(canvas.done, 0, proposal.num))
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


def _count(stats: Stats, before: Canvas, after: Canvas, proposal: Proposal | Window) -> Stats:
    live = (~before.done).astype(jnp.int32)
    if isinstance(proposal, Window):
        forwarded = proposal.num if proposal.contrast is None else 2 * proposal.num
        if proposal.nested is not None:
            forwarded = forwarded * (1 + proposal.nested.valid.sum(-1, dtype=jnp.int32))
        decided = (before.open & ~after.open).sum(-1, dtype=jnp.int32)
        accepted = jnp.maximum(decided - 1, 0)
    else:
        forwarded = proposal.valid.sum(-1, dtype=jnp.int32)
        accepted = after.length - before.length - 1
    return Stats(
        nfe=stats.nfe + live,
        num_accepted=stats.num_accepted + live * accepted,
        tokens_forwarded=stats.tokens_forwarded + live * forwarded,
    )
