"""Clover-2: a state that takes in one drafted token after another, and a tree of the best paths.

The state is made by layers of the drafter's own, with a cache of their own: row t joins the
target's state of token t, before its last norm, with the token behind it. Below the pending token
the tree follows the best paths of all, level by level.

Exactness: L0 under sample_match. Cost: a row of the layers per committed token, and one regressive
attention and the target's head per expanded node.
Source: arXiv:2408.00264; differs: the tree is EAGLE-2's, with laws over the whole vocabulary.
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
from jaxdecode.heads import clover2
from jaxdecode.sampling.top import top_ids
from jaxdecode.trees import chain, dynamic, features, own_cache, probes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: draft tokens per step: the best of all paths.
        width: nodes of a level that are expanded, and children of each.
        depth: deepest draft; None takes as many as heads were trained.
    """

    num_draft: int = 20
    width: int = 4
    depth: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_draft", self.num_draft, low=1, high=1023)
        checks.integer("width", self.width, low=1, high=64)
        if self.depth is not None:
            checks.integer("depth", self.depth, low=1, high=64)


@pytree
class State:
    """The drafter's own past.

    Attributes:
        cache: keys and values of its layers, a row per token before the pending one.
        num_rows: how many there are.
        last: what the layers said of the last row.
    """

    cache: Any
    num_rows: Int[Array, "B"]
    last: Float[Array, "B D"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter."""
    assert models.heads is not None
    shape, model = models.heads.shape, models.target
    parts, target = clover2.bind(shape, model.config, model.kv_dtype), model.target
    depth = min(config.depth or shape.num_heads, shape.num_heads)
    width = min(config.width, model.config.vocab_size)
    num_grown = width + (depth - 1) * width * width
    num_draft = min(config.num_draft, num_grown)
    tap = f"layer.{model.config.num_layers - 1}"

    def init(weights, request, canvas, view, memory):
        del weights, request, view, memory
        batch, slots = canvas.tokens.shape
        return State(
            cache=own_cache.empty(model, parts.config, batch, slots),
            num_rows=jnp.zeros(batch, jnp.int32),
            last=jnp.zeros((batch, model.config.hidden_size), jnp.float32),
        )

    def extend(weights, state, hidden, tokens, num_new):
        embedded = parts.embed(weights.target, tokens)
        x = parts.attend(weights.heads["extract"], hidden, embedded).astype(hidden.dtype)
        index = jnp.arange(x.shape[1], dtype=jnp.int32)
        program = MaskProgram(
            cached=state.num_rows, positions=state.num_rows[:, None] + index, num_new=num_new
        )
        cached = model.cache.read(state.cache)
        out, rows = parts.layers(weights.heads, x, program, cached)
        last = features.pick(out, jnp.maximum(num_new - 1, 0)).astype(jnp.float32)
        return State(
            cache=model.cache.write(state.cache, rows, state.num_rows),
            num_rows=state.num_rows + num_new,
            last=jnp.where((num_new > 0)[:, None], last, state.last),
        )

    def absorb(weights, state, canvas, start, num_new, output):
        hidden, slots = output.taps[tap], canvas.tokens.shape[1]
        slot = start + 1 + jnp.arange(hidden.shape[1], dtype=jnp.int32)
        tokens = canvas.tokens[:, jnp.minimum(slot, slots - 1)]
        return extend(weights, state, hidden, tokens, num_new)

    def propose(weights, state, request, canvas, view):
        del request, view

        def children(level, contexts):
            x, tokens = contexts
            if level == 0:
                read = parts.first(weights.heads, x)
            else:
                embedded = parts.embed(weights.target, tokens)
                read, x = parts.later(weights.heads, x, embedded)
            law = jax.nn.log_softmax(target.logits(weights.target, read))
            ids = top_ids(law, width)
            below = (jnp.broadcast_to(x[:, None], (*ids.shape, x.shape[-1])), ids)
            return ids, jnp.take_along_axis(law, ids, axis=-1), below, level + 1

        def row(last, pending):
            grown, _ = dynamic.grow(children, 0, (last, pending), levels=depth, width=width)
            return dynamic.select(grown, pending, num_draft)

        chosen = jax.vmap(row)(state.last, chain.pending(canvas)[:, 0])
        return dynamic.proposal(chosen, max_depth=depth, max_children=width), state

    def update(weights, state, request, canvas, proposal, verdict, output):
        del request, proposal
        hidden = probes.at(output.taps[tap], verdict.path)
        # All committed tokens but the pending one have a row.
        return extend(weights, state, hidden, verdict.tokens, canvas.length - state.num_rows)

    return Drafter(
        init=init,
        absorb=absorb,
        propose=propose,
        update=update,
        taps=(tap,),
        max_depth=depth,
    )
