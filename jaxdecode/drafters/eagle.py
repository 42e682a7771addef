"""EAGLE: a layer that goes on with the target's states, token by token, down a tree.

The layer has a past of its own: a row per token before the pending one, made from the target's
true states. Below, rows are made from the layer's own outputs; a node sees the past and the nodes
above it. The tree is static (EAGLE), or grows where the drafter is surest (EAGLE-2 and EAGLE-3).

Exactness: L0 under sample_match. Cost: a row of the layer per committed token; per level of the
tree one pass over its rows so far and the head on the new ones.
Source: arXiv:2401.15077, arXiv:2406.16858, arXiv:2503.01840.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import pytree
from jaxdecode.heads import eagle, eagle3
from jaxdecode.sampling.top import top_ids
from jaxdecode.trees import chain, dynamic, features, own_cache, probes, ranked, static
from jaxdecode.trees import grown as grown_rows

# With the root, a tree of 32 nodes.
NUM_DRAFT = 31
KINDS = {"eagle": eagle, "eagle3": eagle3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        tree: name of a shipped static tree (`configs/trees`) or path of a tree file; None grows
            one at every step.
        num_draft: draft tokens per step: the best of all paths, 31 by default; of a static tree the
            first, all by default.
        width: nodes of a level that a growing tree goes on from, and children of each.
        depth: deepest draft of a growing tree.
    """

    tree: str | None = None
    num_draft: int | None = None
    width: int = 8
    depth: int = 5

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if self.num_draft is not None:
            checks.integer("num_draft", self.num_draft, low=1, high=1023)
        checks.integer("width", self.width, low=1, high=64)
        checks.integer("depth", self.depth, low=1, high=64)
        if self.tree is not None:
            static.check_part(self.tree, self.num_draft)


@pytree
class State:
    """The drafter's own past.

    Attributes:
        cache: keys and values of its layer, a row per token before the pending one.
        num_rows: how many there are.
        last: the layer's output of the last row: the state of the pending token, guessed.
    """

    cache: Any
    num_rows: Int[Array, "B"]
    last: Float[Array, "B D"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter."""
    assert models.heads is not None
    model, spec = models.target, models.heads
    parts = KINDS[spec.kind].bind(spec.shape, model.config, model.kv_dtype, model.target)

    def init(weights, request, canvas, view, memory):
        del request, view, memory
        batch, slots = canvas.tokens.shape
        dtype = weights.target["embed"]["embedding"].dtype
        return State(
            cache=own_cache.empty(model, parts.layer.config, batch, slots),
            num_rows=jnp.zeros(batch, jnp.int32),
            last=jnp.zeros((batch, model.config.hidden_size), dtype),
        )

    def extend(weights, state, seen, tokens, num_new):
        index = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        program = MaskProgram(
            cached=state.num_rows, positions=state.num_rows[:, None] + index, num_new=num_new
        )
        cached = model.cache.read(state.cache)
        out, rows = eagle.run(parts, weights.heads, weights.target, tokens, seen, program, cached)
        last = features.pick(out, jnp.maximum(num_new - 1, 0)).astype(state.last.dtype)
        return State(
            cache=model.cache.write(state.cache, rows, state.num_rows),
            num_rows=state.num_rows + num_new,
            last=jnp.where((num_new > 0)[:, None], last, state.last),
        )

    def absorb(weights, state, canvas, start, num_new, output):
        seen, slots = parts.features(weights.heads, output), canvas.tokens.shape[1]
        slot = start + 1 + jnp.arange(seen.shape[1], dtype=jnp.int32)
        tokens = canvas.tokens[:, jnp.minimum(slot, slots - 1)]
        return extend(weights, state, seen, tokens, num_new)

    def deeper(weights, cached, num_rows, grown, num_out):
        """Outputs of the last `num_out` rows: the last level's."""
        program = grown_rows.program(grown, num_rows)
        rows = grown.tokens, grown.features
        return eagle.run(parts, weights.heads, weights.target, *rows, program, cached, num_out)[0]

    def propose(weights, state, request, canvas, view):
        del request, view
        grow = _static if config.tree is not None else _dynamic
        return grow(config, model, parts, deeper, weights, state, canvas), state

    def update(weights, state, request, canvas, proposal, verdict, output):
        del request, proposal
        seen = probes.at(parts.features(weights.heads, output), verdict.path)
        # All committed tokens but the pending one have a row.
        return extend(weights, state, seen, verdict.tokens, canvas.length - state.num_rows)

    depth = config.depth
    if config.tree is not None:
        depth = _tree(config).max_depth
    return Drafter(
        init=init, absorb=absorb, propose=propose, update=update, taps=parts.taps, max_depth=depth
    )


def _tree(config: Config) -> static.StaticTree:
    tree = static.load(config.tree or "")
    return tree if config.num_draft is None else tree.first(config.num_draft)


def _dynamic(config, model, parts, deeper, weights, state, canvas):
    """The best paths of a tree that grows where the drafter is surest."""
    width = min(config.width, model.config.vocab_size)

    def row(keys_and_values, num_rows, last, pending):
        cached = jax.tree.map(lambda leaf: leaf[None], keys_and_values)

        def children(carry, contexts):
            level, grown = carry
            out, tokens, sees = contexts
            if level:
                grown = grown_rows.below(grown, sees[None], out[None], tokens[None])
                out = deeper(weights, cached, num_rows[None], grown, len(tokens))[0]
                sees = grown.sees[0, -len(tokens) :]
            law = jax.nn.log_softmax(parts.scores(weights.heads, weights.target, out))
            columns = top_ids(law, min(width, law.shape[-1]))
            ids = parts.tokens(weights.heads, columns)
            spread = [jnp.broadcast_to(x[:, None], (*ids.shape, *x.shape[1:])) for x in (out, sees)]
            scores = jnp.take_along_axis(law, columns, axis=-1)
            return ids, scores, (spread[0], ids, spread[1]), (level + 1, grown)

        root = (last, pending, jnp.zeros(0, bool))
        found, _ = dynamic.grow(children, (0, None), root, levels=config.depth, width=width)
        return dynamic.select(found, pending, config.num_draft or NUM_DRAFT)

    cached = model.cache.read(state.cache)
    chosen = jax.vmap(row)(cached, state.num_rows, state.last, chain.pending(canvas)[:, 0])
    return dynamic.proposal(chosen, max_depth=config.depth, max_children=width)


def _static(config, model, parts, deeper, weights, state, canvas):
    """The likeliest tokens in a tree of fixed shape."""
    cached, grown = model.cache.read(state.cache), None

    def score(level, told, tokens):
        nonlocal grown
        out, sees = told
        if level:
            grown = grown_rows.below(grown, sees, out, tokens)
            out = deeper(weights, cached, state.num_rows, grown, tokens.shape[1])
            sees = grown.sees[:, -tokens.shape[1] :]
        columns = parts.scores(weights.heads, weights.target, out)
        return columns, (out, sees)

    row = (state.last, jnp.zeros((len(state.last), 0), bool))
    proposal = ranked.propose(_tree(config), canvas, row, score)
    drafts = parts.tokens(weights.heads, proposal.tokens[:, 1:])
    return dataclasses.replace(
        proposal, tokens=jnp.concatenate([proposal.tokens[:, :1], drafts], axis=1)
    )
