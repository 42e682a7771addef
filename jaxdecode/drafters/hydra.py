"""Hydra: heads that read the drafts before theirs fill a tree level by level.

The state is that of Medusa: the target's last one, of the token before the pending one. Head i
reads it, the pending token and the i drafts on the way to a node, so that the children of a node
are guesses of what follows its own path.

Exactness: L0 under sample_match. Cost: head i on every inner node of level i of the tree.
Source: arXiv:2402.05109; differs: untrained heads say what the target's head says.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxdecode.core.protocols import Drafter, Models, Weights
from jaxdecode.heads import hydra
from jaxdecode.trees import features, ranked, static

# Made for drafts that follow their path: deeper than the tree of Medusa, with fewer nodes.
DEFAULT = "eagle_25"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        tree: name of a shipped tree (`configs/trees`) or path of a tree file; None takes the
            shipped eagle_25 as deep as there are heads.
        num_draft: draft tokens per step: the first of the tree; None takes all.
    """

    tree: str | None = None
    num_draft: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        static.check_part(self.tree or DEFAULT, self.num_draft)


def make(config: Config, models: Models) -> Drafter:
    """The drafter; its state is the target's hidden state before the pending token."""
    assert models.heads is not None
    tree = tree_of(config, models)

    def propose(weights, state, request, canvas, view):
        del request, view
        return ranked.propose(tree, canvas, state, scoring(models, weights)), state

    return Drafter(
        init=features.start(models.target),
        absorb=features.absorb,
        propose=propose,
        update=features.update,
        widths=(1, tree.num_nodes),
        max_depth=tree.max_depth,
    )


def tree_of(config: Config, models: Models) -> static.StaticTree:
    """The tree that is filled."""
    assert models.heads is not None
    depth = models.heads.shape.num_heads
    return ranked.tree_of(config.tree, config.num_draft, depth=depth, default=DEFAULT)


def scoring(models: Models, weights: Weights) -> Callable[..., Any]:
    """Scores a level's nodes: a node leaves its children all that its head read."""
    assert models.heads is not None and models.target.target.embed is not None
    shape, target = models.heads.shape, models.target.target
    embed = models.target.target.embed

    def score(level, told, tokens):
        rows = embed(weights.target, tokens)
        inputs = jnp.concatenate([told.astype(rows.dtype), rows], axis=-1)
        scores = hydra.logits(
            shape, weights.heads, level, inputs, lambda x: target.logits(weights.target, x)
        )
        return scores, inputs

    return score
