"""Semi-autoregressive drafting: k tokens per pass of a small drafter, and a tree of few passes.

The drafter reads states of the target, guesses the k states that follow, and goes on from its own
guesses. The likeliest tokens of the k states fill k levels of a fixed tree of ranks; another pass
goes on from every node there that has children, with the tokens on the way to it. Accepted tokens
enter the drafter's cache and memory with the target's states, never with guessed ones.

Exactness: L0 under sample_match. Cost: one pass of two small layers and of the target's head per k
levels, and a cache of one row per token.
Source: arXiv:2412.12639; differs: blocks end with the text, wherever it ends, and the drafter is
trained for that, so that nothing is cut off and computed again; the recurrent layers' output is
added to their input; the tree is that of arXiv:2401.15077 down to two passes.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdecode.core import masks
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import Proposal, pytree
from jaxdecode.heads import falcon
from jaxdecode.sampling.top import top_ids
from jaxdecode.trees import chain, own_cache, passes, probes, static


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        tree: name of a shipped tree (`configs/trees`) or path of a tree file; None takes the
            shipped eagle_25 as deep as two passes go.
        num_draft: draft tokens per step: the first of the tree; None takes all.
    """

    tree: str | None = None
    num_draft: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        static.check_part(self.tree or "eagle_25", self.num_draft)


@pytree
class State:
    """The drafter's own past.

    Attributes:
        past: its rows.
        memory: what its recurrent layers remember of them.
    """

    past: own_cache.Past
    memory: Float[Array, "B n 2 D"]


class _Bound(NamedTuple):
    """What the steps need besides their data."""

    own: falcon.Drafting
    models: Models
    tree: static.StaticTree
    block: int


def make(config: Config, models: Models) -> Drafter:
    """The drafter."""
    assert models.heads is not None
    shape, model = models.heads.shape, models.target
    own = falcon.bind(shape, model.config, model.kv_dtype)
    tree = static.load(config.tree or "eagle_25")
    tree = tree.up_to(2 * shape.block) if config.tree is None else tree
    if config.num_draft is not None:
        tree = tree.first(min(config.num_draft, len(tree.paths)))
    bound = _Bound(own, models, tree, shape.block)

    def init(weights, request, canvas, view, memory):
        del request, view, memory
        batch, slots = canvas.tokens.shape
        dtype = weights.target["embed"]["embedding"].dtype
        past = own_cache.Past(
            cache=own_cache.empty(model, own.pairs.config, batch, slots),
            last=jnp.zeros((batch, shape.block, model.config.hidden_size), dtype),
            num_rows=jnp.zeros(batch, jnp.int32),
        )
        return State(past=past, memory=own.memory(batch))

    def absorb(weights, state, canvas, start, num_new, output):
        size = output.hidden.shape[1]
        slot = jnp.minimum(start + 1 + jnp.arange(size), canvas.tokens.shape[1] - 1)
        return _extend(bound, weights, state, output.hidden, canvas.tokens[:, slot], num_new)

    def propose(weights, state, request, canvas, view):
        del request, view
        tokens = _fill(bound, weights, state, chain.pending(canvas))
        valid = (
            jnp.ones_like(tokens, bool).at[:, 1:].set((state.past.num_rows >= shape.block)[:, None])
        )
        arrays = static.proposal_arrays(tree, len(tokens))
        return Proposal(tokens=tokens, valid=valid, **arrays), state

    def update(weights, state, request, canvas, proposal, verdict, output):
        del request, proposal
        features = probes.at(output.hidden, verdict.path)
        num_new = canvas.length - state.past.num_rows
        return _extend(bound, weights, state, features, verdict.tokens, num_new)

    return Drafter(
        init=init,
        absorb=absorb,
        propose=propose,
        update=update,
        widths=(1, tree.num_nodes),
        max_depth=tree.max_depth,
    )


def _embed(bound: _Bound, weights: Any, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    target = bound.models.target.target
    assert target.embed is not None
    return target.embed(weights.target, tokens)


def _extend(bound: _Bound, weights, state: State, features, tokens, num_new) -> State:
    """The past with rows of states and the tokens that follow them."""
    own, size = bound.own, tokens.shape[1]
    x = own.pairs.enter(weights.heads, _embed(bound, weights, tokens), features)
    keep = jnp.arange(size) < num_new[:, None]
    x, memory = own.recur(weights.heads, x, state.memory, keep=keep)
    rows = own.pairs.rows(weights.heads, x, own_cache.positions(state.past, size))
    past = own_cache.append(bound.models.target, state.past, x, rows, num_new)
    return State(past=past, memory=memory)


def _fill(bound: _Bound, weights, state: State, pending: Int[Array, "B 1"]) -> Int[Array, "B N"]:
    """The tokens of the tree."""
    own, k = bound.own, bound.block
    target, cache = bound.models.target.target, bound.models.target.cache
    tree, past, batch = bound.tree, state.past, len(pending)
    cached = cache.read(past.cache)
    tokens = jnp.pad(pending, ((0, 0), (0, tree.num_nodes - 1)))
    # Rows of all passes but the first, whose rows are the last of the past.
    x, memory = past.last[:, :0], state.memory[:, None]
    features = own.states(weights.heads, past.last, _first(past, k), cached)[:, None]
    for number, step in enumerate(passes.plan(tree, k)):
        if number:
            way = _embed(bound, weights, tokens[:, step.way.reshape(-1)])
            way = way.reshape(*features[:, step.parent].shape)
            rows = own.pairs.enter(weights.heads, way, features[:, step.parent])
            rows, memory = _recur_each(own, weights.heads, rows, memory[:, step.parent])
            x = jnp.concatenate([x, rows.reshape(batch, -1, x.shape[-1])], axis=1)
            program = _later(past, passes.plan(tree, k)[: number + 1], k)
            out = own.states(weights.heads, x, program, cached)
            features = out[:, -len(step.starts) * k :].reshape(rows.shape)
        scores = target.logits(weights.target, features)
        ids = top_ids(scores.reshape(-1, scores.shape[-1]), tree.max_rank + 1)
        ids = ids.reshape(*scores.shape[:-1], -1)
        drafts = ids[:, step.start, step.offset, tree.rank[step.nodes]]
        tokens = tokens.at[:, step.nodes].set(drafts.astype(tokens.dtype))
    return tokens


def _recur_each(own: falcon.Drafting, params, rows: Float[Array, "B E k D"], memory):
    """The recurrent layers over the rows of every start, each with a memory of its own."""

    def flat(array):
        return array.reshape(-1, *array.shape[2:])

    out, after = own.recur(params, flat(rows), flat(memory))
    return out.reshape(rows.shape), after.reshape(memory.shape)


def _first(past: own_cache.Past, block: int) -> MaskProgram:
    """The last rows of the past once more, as a block."""
    start = past.num_rows - block
    return MaskProgram(
        cached=start,
        positions=start[:, None] + jnp.arange(block, dtype=jnp.int32),
        num_new=jnp.full_like(start, block),
        rule="bidirectional",
    )


def _later(past: own_cache.Past, done: tuple[passes.Pass, ...], block: int) -> MaskProgram:
    """Blocks of guesses: each sees the past, the blocks on the way to it, and itself."""
    sizes = [len(step.starts) for step in done[1:]]
    ahead = np.repeat(np.arange(len(sizes)) * block, sizes)[:, None] + np.arange(block)
    sees = np.repeat(np.repeat(done[-1].sees, block, axis=0), block, axis=1)
    words = masks.pack_ancestors(jnp.asarray(sees)[None])
    return MaskProgram(
        cached=past.num_rows,
        positions=past.num_rows[:, None] + ahead.reshape(-1).astype(np.int32),
        num_new=jnp.full_like(past.num_rows, ahead.size),
        ancestors=jnp.broadcast_to(words, (len(past.num_rows), *words.shape[1:])),
        rule="tree",
    )
