"""Static trees of ranks whose drafts depend on the path: scored level by level.

All nodes of a level that have children are scored at once; each child takes the token of its rank
among its own parent's scores.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdecode.core.types import Canvas, Proposal
from jaxdecode.errors import InputError
from jaxdecode.sampling.top import top_ids
from jaxdecode.trees import chain, passes, static
from jaxdecode.trees.static import StaticTree

# (level, what the nodes' parents left [B, n, ...], the nodes' tokens [B, n]) -> (scores of the
# tokens behind each [B, n, V], what each leaves to its children [B, n, ...]). The root's level is
# 0, and its parent is the row.
Score = Callable[[int, Any, Int[Array, "B n"]], tuple[Float[Array, "B n V"], Any]]


def propose(tree: StaticTree, canvas: Canvas, row: Any, score: Score) -> Proposal:
    """The proposal that fills `tree`.

    Args:
        tree: its shape.
        canvas: token slots.
        row: what the root is told, with an axis for the rows of the batch.
        score: scores the nodes of a level.
    """
    tokens = chain.pending(canvas)
    batch, order, made = len(tokens), [np.zeros(1, int)], [tokens]
    told = jax.tree.map(lambda x: x[:, None], row)
    above = tokens
    for level, part in enumerate(passes.plan(tree, 1)):
        if level:
            told = jax.tree.map(lambda x, up=part.parent: x[:, up], told)
            above = made[-1][:, np.searchsorted(order[-1], part.starts)]
        scores, told = score(level, told, above)
        rank = tree.rank[part.nodes]
        ids = top_ids(scores.reshape(-1, scores.shape[-1]), int(rank.max()) + 1)
        made.append(ids.reshape(batch, len(part.starts), -1)[:, part.start, rank])
        order.append(part.nodes)
    # Nodes stand in the tree's own order, in which prefixes are the best smaller trees.
    tokens = jnp.concatenate(made, axis=1)[:, np.argsort(np.concatenate(order))]
    arrays = static.proposal_arrays(tree, batch)
    return Proposal(tokens=tokens, valid=jnp.ones_like(tokens, bool), **arrays)


def tree_of(
    name: str | None, num_draft: int | None, *, depth: int, default: str = "medusa_63"
) -> StaticTree:
    """The tree that heads which guess `depth` tokens ahead fill.

    Args:
        name: what was asked for; None takes the default as deep as the heads guess.
        num_draft: how many of its nodes; None takes all.
        depth: tokens that the heads guess.
        default: name of a shipped tree.

    Raises:
        InputError: the tree that was asked for is deeper.
    """
    tree = static.load(name or default)
    if name is None:
        tree = tree.up_to(depth)
    if tree.max_depth > depth:
        raise InputError(
            f"tree {name!r} is {tree.max_depth} tokens deep, but the heads guess {depth} tokens; "
            "take a flatter tree, or train more heads."
        )
    return tree if num_draft is None else tree.first(min(num_draft, len(tree.paths)))
