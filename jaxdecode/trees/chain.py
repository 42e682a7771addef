"""Chains: proposals in which every node has one child. Several side by side share the root."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core.types import Canvas, Proposal, SparseProbs


def pending(canvas: Canvas) -> Int[Array, "B 1"]:
    """The pending token of every row."""
    return jnp.take_along_axis(canvas.tokens, canvas.length[:, None], axis=1)


def propose(
    canvas: Canvas,
    draft: Int[Array, "B M"],
    valid: Bool[Array, "B M"],
    *,
    num_chains: int = 1,
    draft_probs: Float[Array, "B N V"] | SparseProbs | None = None,
) -> Proposal:
    """The proposal of `num_chains` chains below the pending token.

    Args:
        canvas: token slots; gives the pending token.
        draft: the chains' tokens one after another, M = num_chains x length of a chain.
        valid: which of them exist; a chain must not have a gap.
        num_chains: chains of equal length.
        draft_probs: law the children of each of the N = M + 1 nodes were drawn from.
    """
    parent, depth = shape(draft.shape[1] // num_chains, num_chains)
    tokens = jnp.concatenate([pending(canvas), draft], axis=1)
    full = (tokens.shape[0], len(parent))
    return Proposal(
        tokens=tokens.astype(jnp.int32),
        parent=jnp.broadcast_to(parent, full),
        depth=jnp.broadcast_to(depth, full),
        valid=jnp.concatenate([jnp.ones_like(valid[:, :1]), valid], axis=1),
        max_depth=int(depth.max()),
        max_children=num_chains,
        draft_probs=draft_probs,
    )


def shape(length: int, num_chains: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Parent and depth of every node of `num_chains` chains of `length` draft tokens."""
    parent, depth = [-1], [0]
    for chain in range(num_chains):
        first = 1 + chain * length
        parent += [0, *range(first, first + length - 1)][:length]
        depth += range(1, length + 1)
    return np.asarray(parent, np.int32), np.asarray(depth, np.int32)


def widths(num_draft: int) -> tuple[int, ...]:
    """Numbers of nodes worth a program of their own: no draft, powers of two, the whole chain."""
    steps = [1 << i for i in range(num_draft.bit_length()) if 1 << i <= num_draft]
    return tuple(dict.fromkeys([1, *(step for step in steps if step > 2), num_draft + 1]))
