"""Dynamic trees: grow candidates level by level, keep the best of all (arXiv:2406.16858).

A candidate's score is the log-probability of its whole path. Each level expands the `width` best
candidates of the level before into `branch` children each; in the end the best nodes of all levels
make the proposal. A child never scores above its parent and stands behind it, and equal scores are
kept in order, so that the best nodes always are a tree. Everything is written for one row and has
fixed shapes; what a drafter cannot offer has score -inf.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core.types import Proposal, pytree


@pytree
class Candidates:
    """All nodes that were grown, level by level; children always behind their parents.

    Attributes:
        tokens: their tokens.
        scores: log-probability of the path; -inf where there is none.
        parent: index of the parent candidate; -1 below the root.
        depth: 1 below the root.
    """

    tokens: Int[Array, "M"]
    scores: Float[Array, "M"]
    parent: Int[Array, "M"]
    depth: Int[Array, "M"]


@pytree
class Chosen:
    """The nodes of one row's proposal; entry 0 is the root.

    Attributes:
        tokens: their tokens; the root's is the caller's.
        parent: index of the parent node; -1 at the root.
        depth: 0 at the root.
        valid: which of them exist.
        scores: log-probability of their paths; 0 at the root.
    """

    tokens: Int[Array, "N"]
    parent: Int[Array, "N"]
    depth: Int[Array, "N"]
    valid: Bool[Array, "N"]
    scores: Float[Array, "N"]


# (carry, contexts [W, ...]) -> (tokens [W, branch], log-probabilities [W, branch],
#                               contexts of the children [W, branch, ...], carry)
Children = Callable[[Any, Any], tuple[Array, Array, Any, Any]]


def grow(
    children: Children, carry: Any, root: Any, *, levels: int, width: int
) -> tuple[Candidates, Any]:
    """Candidates of `levels` levels below the root, and the last carry.

    Args:
        children: offers children of several nodes at once.
        carry: what it threads through the levels: a cache, say; or None.
        root: the root's context, without a leading axis.
        levels: depth of the deepest candidates.
        width: nodes of a level that are expanded.
    """
    contexts = jax.tree.map(lambda x: jnp.asarray(x)[None], root)
    beam, beam_scores, made = jnp.full(1, -1), jnp.zeros(1), []
    size = 0
    for level in range(levels):
        tokens, scores, below, carry = children(carry, contexts)
        num, branch = tokens.shape
        scores = (beam_scores[:, None] + scores).reshape(-1)
        made.append(
            Candidates(
                tokens=tokens.reshape(-1).astype(jnp.int32),
                scores=scores,
                parent=jnp.repeat(beam, branch).astype(jnp.int32),
                depth=jnp.full(num * branch, level + 1, jnp.int32),
            )
        )
        beam_scores, best = jax.lax.top_k(scores, min(width, num * branch))
        flat = jax.tree.map(lambda x, n=num * branch: x.reshape(n, *x.shape[2:]), below)
        contexts = jax.tree.map(lambda x, best=best: x[best], flat)
        beam = size + best
        size += num * branch
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *made), carry


def select(candidates: Candidates, root: Int[Array, ""], num_draft: int) -> Chosen:
    """The `num_draft` best candidates below the root token, best first.

    Prefixes of the result are the best smaller trees, so a proposal may be cut anywhere.
    """
    size = candidates.scores.shape[0]
    scores, best = jax.lax.top_k(candidates.scores, min(num_draft, size))
    node = jnp.zeros(size + 1, jnp.int32).at[best].set(1 + jnp.arange(len(best), dtype=jnp.int32))
    above = candidates.parent[best]
    # Children of the root look up the extra last entry, which is 0.
    parent = node[jnp.where(above < 0, size, above)]

    def head(first, rest):
        return jnp.concatenate([jnp.asarray(first)[None], rest])

    return Chosen(
        tokens=head(root, candidates.tokens[best]).astype(jnp.int32),
        parent=head(jnp.int32(-1), parent),
        depth=head(jnp.int32(0), candidates.depth[best]),
        valid=head(True, scores > -jnp.inf),
        scores=head(0.0, scores),
    )


def proposal(chosen: Chosen, *, max_depth: int, max_children: int) -> Proposal:
    """The proposal of every row's chosen nodes; the arrays have a leading axis of rows."""
    return Proposal(
        tokens=chosen.tokens,
        parent=chosen.parent,
        depth=chosen.depth,
        valid=chosen.valid,
        max_depth=max_depth,
        max_children=max_children,
    )
