"""Chimera: trigrams of drafts in front of a layer that sees the target's states of the whole text.

The layer has a cache of its own, with a row per token before the pending one, made of the target's
last hidden states. Each level of the tree adds a row per node behind it, made of the node's token
and the two before it; a node sees the past and the nodes above it.

Exactness: L0 under sample_match. Cost: keys and values of one layer per committed token; per level
of the tree a pass of the layer over its rows so far, and the target's head on the new ones.
Source: arXiv:2402.15758; differs: the head joins both states in front of the target's own head,
unless `own_head` gives it a matrix of its own.
"""

import dataclasses

import jax.numpy as jnp

from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.drafters import hydra
from jaxdecode.heads import chimera
from jaxdecode.trees import chain, grown, own_cache, ranked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(hydra.Config):
    """Options: those of Hydra."""


def make(config: Config, models: Models) -> Drafter:
    """The drafter; its state is the past of the layer."""
    assert models.heads is not None and models.target.target.embed is not None
    model, embed = models.target, models.target.target.embed
    parts = chimera.bind(models.heads.shape, model.config, model.kv_dtype)
    tree = hydra.tree_of(config, models)

    def propose(weights, state, request, canvas, view):
        del request, view
        cached, rows = model.cache.read(state.cache), None

        def score(level, told, tokens):
            nonlocal rows
            before, sees = told
            trigram = jnp.concatenate([before, tokens[..., None]], axis=-1)
            embedded = embed(weights.target, trigram.reshape(len(tokens), -1))
            embedded = embedded.reshape(*trigram.shape, -1)
            features = parts.trigrams(weights.heads, embedded)
            rows = grown.below(rows, sees, features, tokens)
            program = grown.program(rows, state.num_rows)
            num = tokens.shape[1]
            out = parts.below(weights.heads, rows.features, program, cached, num)
            hidden = jnp.broadcast_to(state.last, out.shape)
            scores = parts.scores(
                weights.heads, hidden, out, lambda x: model.target.logits(weights.target, x)
            )
            return scores, (trigram[..., 1:], rows.sees[:, -num:])

        return ranked.propose(tree, canvas, _root(canvas), score), state

    return Drafter(
        **own_cache.of_states(model, parts.layer.config, parts.rows),
        propose=propose,
        widths=(1, tree.num_nodes),
        max_depth=tree.max_depth,
    )


def _root(canvas):
    """The two tokens before the pending one, and that it sees no drafts.

    Where the text has fewer, its first token stands for what is missing.
    """
    slots = jnp.maximum(canvas.length[:, None] + jnp.array([-2, -1]), 0)
    before = jnp.take_along_axis(canvas.tokens, slots, axis=1)
    return before, jnp.zeros((*chain.pending(canvas).shape[:1], 0), bool)
