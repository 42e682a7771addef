"""A language model as drafter: its cache in step with the canvas, its scores in target tokens.

The draft model keeps keys and values of its own. A step begins by forwarding the last few committed
tokens again: which of them a rejected draft left behind in the cache then does not matter, and
there is no count to keep. What is written past the pending token is overwritten before it is seen.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core import masks, prefill
from jaxdecode.core.protocols import Model, Models, Rows, TargetOutput, Weights
from jaxdecode.core.types import Canvas, Request, Sampling
from jaxdecode.sampling import noise, warp
from jaxdecode.trees import chain, walk


class DraftModel(NamedTuple):
    """A draft model and the size of the vocabulary it drafts for; hashable.

    Attributes:
        model: the draft model.
        vocab_size: the target's rows.
    """

    model: Model
    vocab_size: int


class Drawn(NamedTuple):
    """One draft token of every row.

    Attributes:
        token: its id.
        confident: whether the row goes on; where not, the token is not proposed.
        law: the law it was drawn from; None if that is not recorded.
    """

    token: Int[Array, "B"]
    confident: Bool[Array, "B"]
    law: Float[Array, "B V"] | None = None


class Chain(NamedTuple):
    """A chain of draft tokens.

    Attributes:
        tokens: their ids.
        valid: which of them are proposed; there is no gap.
        law: the law each was drawn from; None if that is not recorded.
    """

    tokens: Int[Array, "B M"]
    valid: Bool[Array, "B M"]
    law: Float[Array, "B M V"] | None


# From warped scores, and the position the token will take.
Draw = Callable[[Float[Array, "B V"], Int[Array, "B"]], Drawn]


def bind(models: Models) -> DraftModel:
    """The draft model among the models of a method."""
    assert models.draft is not None
    return DraftModel(models.draft, models.target.config.vocab_size)


def starting(draft: DraftModel) -> Callable[..., Any]:
    """A drafter's `init`: the draft model's cache with all before the pending token in it."""

    def init(weights, request, canvas, view, memory):
        del request, view, memory
        params, lengths = weights.drafter.params, np.asarray(canvas.length)
        tokens = np.asarray(canvas.tokens)
        if weights.drafter.to_draft is not None:
            tokens = np.asarray(weights.drafter.to_draft)[tokens]
        tokens = np.clip(tokens, 0, draft.model.config.vocab_size - 1)
        cache = prefill.empty(params, draft.model, *tokens.shape)
        return prefill.fill(params, draft.model, cache, tokens, lengths)

    return init


def catch_up(
    draft: DraftModel, weights: Weights, view: Rows, canvas: Canvas, num_tokens: int
) -> tuple[Float[Array, "B V"], Rows, Int[Array, "B"]]:
    """Forwards the last `num_tokens` committed tokens, the pending token last.

    Returns the scores after the pending token, and the new rows with their first slot. A row of
    fewer tokens begins at slot 0 and gets garbage past its pending token.
    """
    start = jnp.maximum(canvas.length - (num_tokens - 1), 0)
    slots = start[:, None] + jnp.arange(num_tokens, dtype=jnp.int32)
    tokens = jnp.take_along_axis(canvas.tokens, slots, axis=1)
    output = forward(draft, weights, view, tokens, start)
    last = (canvas.length - start)[:, None, None]
    hidden = jnp.take_along_axis(output.hidden, last, axis=1)[:, 0]
    return scores(draft, weights, hidden), output.rows, start


def forward(
    draft: DraftModel,
    weights: Weights,
    view: Rows | None,
    tokens: Int[Array, "B T"],
    start: Int[Array, "B"],
) -> TargetOutput:
    """One causal forward pass over target tokens in the slots from `start` on.

    Without a view nothing is before them.
    """
    width = tokens.shape[1]
    program = masks.MaskProgram(
        cached=start,
        positions=start[:, None] + jnp.arange(width, dtype=jnp.int32),
        num_new=jnp.full_like(start, width),
    )
    tokens = to_draft(draft, weights, tokens)
    return draft.model.target.forward(weights.drafter.params, tokens, program, view)


def to_draft(draft: DraftModel, weights: Weights, tokens: Int[Array, "*B"]) -> Int[Array, "*B"]:
    """Draft tokens that stand for target tokens."""
    if weights.drafter.to_draft is not None:
        tokens = weights.drafter.to_draft[tokens]
    return jnp.clip(tokens, 0, draft.model.config.vocab_size - 1)


def scores(
    draft: DraftModel, weights: Weights, hidden: Float[Array, "*B D"]
) -> Float[Array, "*B V"]:
    """The draft model's scores of the target's tokens; -inf where it has none."""
    own = weights.drafter
    columns = draft.model.target.logits(own.params if own.head is None else own.head, hidden)
    if own.column is not None:
        known = jnp.take(columns, jnp.maximum(own.column, 0), axis=-1)
        return jnp.where(own.column >= 0, known, -jnp.inf)
    missing = max(draft.vocab_size - columns.shape[-1], 0)
    pad = [(0, 0)] * (columns.ndim - 1) + [(0, missing)]
    return jnp.pad(columns, pad, constant_values=-jnp.inf)[..., : draft.vocab_size]


def store(cache: Any, draft: DraftModel, rows: Rows, start: Int[Array, "B"], drawn) -> Any:
    """Writes rows to the cache once tokens were drawn from the scores that came with them."""
    # Token ids are never negative: this adds nothing, but makes the write wait for the last read
    # of the pass. Otherwise XLA may write first, and copies the whole cache for it.
    return draft.model.cache.write(cache, rows, start + jnp.minimum(drawn, 0))


def draft_chain(
    draft: DraftModel,
    weights: Weights,
    cache: Any,
    request: Request,
    canvas: Canvas,
    *,
    num_draft: int,
    draw: Draw,
) -> tuple[Chain, Any]:
    """Drafts one chain, a forward pass per token, and writes the rows of what it fed.

    Stops when no live row goes on: `draw` may lack confidence, and drafts that could not be
    committed, because the row or the draft model's context ends, are not made.

    Args:
        draft: the draft model.
        weights: parameters.
        cache: the draft model's cache.
        request: arrays of the batch's options.
        canvas: token slots.
        num_draft: draft tokens per row.
        draw: draws one token of every row.
    """
    sampling = request.sampling
    # The last slot of a row is for the target's own token, which follows the drafts.
    limit = jnp.minimum(canvas.end - 1, draft.model.config.max_length)

    def advance(i, columns, seen, alive):
        """The i-th token (from 0) from the scores before it."""
        position = canvas.length + 1 + i
        drawn = draw(warped(columns, sampling, seen), position)
        if seen is not None:
            seen = jax.vmap(lambda row, token: row.at[token].set(True))(seen, drawn.token)
        return drawn, seen, alive & drawn.confident & (position < limit)

    def go_on(carry):
        i, _, _, _, _, valid, _ = carry
        return (i < num_draft) & valid[:, i - 1].any()

    def body(carry):
        i, cache, seen, token, tokens, valid, law = carry
        view, start = draft.model.cache.read(cache), canvas.length + i
        output = forward(draft, weights, view, token[:, None], start)
        columns = scores(draft, weights, output.hidden[:, 0])
        drawn, seen, alive = advance(i, columns, seen, valid[:, i - 1])
        cache = store(cache, draft, output.rows, start, drawn.token)
        tokens, valid = tokens.at[:, i].set(drawn.token), valid.at[:, i].set(alive)
        law = None if law is None else law.at[:, i].set(drawn.law)
        return i + 1, cache, seen, drawn.token, tokens, valid, law

    # The last draft token of the step before is never fed: its row is made up for here.
    columns, rows, start = catch_up(draft, weights, draft.model.cache.read(cache), canvas, 2)
    alive = ~canvas.done & can_draft(weights, canvas)
    drawn, seen, alive = advance(0, columns, seen_tokens(request, canvas, draft), alive)
    cache = store(cache, draft, rows, start, drawn.token)
    carry = (
        jnp.int32(1),
        cache,
        seen,
        drawn.token,
        _front(drawn.token, num_draft),
        _front(alive, num_draft),
        None if drawn.law is None else _front(drawn.law, num_draft),
    )
    _, cache, _, _, tokens, valid, law = jax.lax.while_loop(go_on, body, carry)
    return Chain(tokens, valid, law), cache


def _front(first: Array, size: int) -> Array:
    """Room for `size` entries per row; the first is given."""
    return jnp.pad(first[:, None], [(0, 0), (0, size - 1)] + [(0, 0)] * (first.ndim - 1))


def keep(weights, state, request, canvas, proposal, verdict, output):
    """An `update` that has nothing to do: the next step catches up by itself."""
    del weights, request, canvas, proposal, verdict, output
    return state


def can_draft(weights: Weights, canvas: Canvas) -> Bool[Array, "B"]:
    """Rows whose pending token the draft model can express."""
    if weights.drafter.to_draft is None:
        return jnp.ones_like(canvas.done)
    return weights.drafter.to_draft[chain.pending(canvas)[:, 0]] >= 0


def seen_tokens(request: Request, canvas: Canvas, draft: DraftModel) -> Bool[Array, "B V"] | None:
    """Tokens already in each row, for the repetition penalty; None without one."""
    sampling, size = request.sampling, draft.vocab_size
    return jax.vmap(lambda row: walk.seen_tokens(row, sampling, size))(canvas)


def warped(
    columns: Float[Array, "B V"], sampling: Sampling, seen: Bool[Array, "B V"] | None
) -> Float[Array, "B V"]:
    """Warped scores of one token per row."""
    return jax.vmap(warp.warp, in_axes=(0, axes(sampling), 0))(columns, sampling, seen)


def axes(sampling: Sampling) -> Any:
    """`in_axes` of a batch's sampling parameters: the bias is shared by all rows."""
    return dataclasses.replace(jax.tree.map(lambda _: 0, sampling), logit_bias=None)


def greedy(sampling: Sampling) -> Bool[Array, "B"]:
    """Rows of temperature 0."""
    return sampling.temperature < warp.GREEDY_BELOW


def gumbel(
    request: Request, position: Int[Array, "B"], *, purpose: int, size: int
) -> Float[Array, "B V"]:
    """Gumbel noise of a position of every row; 0 in greedy rows."""

    def row(key, position):
        return noise.gumbel(key, position, purpose=purpose, size=size)

    return unless_greedy(request.sampling, row, request.key, position, shape=(size,))


def unless_greedy(
    sampling: Sampling, make_row: Callable[..., Array], *args: Array, shape: tuple[int, ...]
) -> Float[Array, "B *S"]:
    """`make_row` of every row, 0 in greedy rows; nothing is computed if all rows are greedy."""
    off = greedy(sampling)

    def some():
        return jnp.where(off.reshape(-1, *[1] * len(shape)), 0.0, jax.vmap(make_row)(*args))

    return jax.lax.cond(off.all(), lambda: jnp.zeros((len(off), *shape), jnp.float32), some)
