"""Medusa: heads on the target's last hidden state guess several tokens ahead at once.

Before a step the target has read everything but the pending token, so its last state is that of the
token before: the target's own head said the pending token there, and head k says what follows k + 1
places later. The likeliest tokens of the heads fill a fixed tree of ranks.

Exactness: L0 under sample_match. Cost: the heads on one state per step.
Source: arXiv:2401.10774.
"""

import dataclasses

import jax.numpy as jnp

from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import Proposal
from jaxdecode.heads import medusa
from jaxdecode.sampling.top import top_ids
from jaxdecode.trees import chain, features, ranked, static


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        tree: name of a shipped tree (`configs/trees`) or path of a tree file; None takes the
            shipped medusa_63 as deep as there are heads.
        num_draft: draft tokens per step: the first of the tree; None takes all.
    """

    tree: str | None = None
    num_draft: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        static.check_part(self.tree or "medusa_63", self.num_draft)


def make(config: Config, models: Models) -> Drafter:
    """The drafter; its state is the target's hidden state before the pending token."""
    assert models.heads is not None
    shape, target = models.heads.shape, models.target.target
    tree = ranked.tree_of(config.tree, config.num_draft, depth=shape.num_heads)

    def propose(weights, state, request, canvas, view):
        del request, view
        scores = medusa.logits(
            shape, weights.heads, state, lambda hidden: target.logits(weights.target, hidden)
        )
        batch, _, size = scores.shape
        ids = top_ids(scores.reshape(-1, size), tree.max_rank + 1)
        ids = ids.reshape(batch, shape.num_heads, -1)
        # A node's token has the node's rank with the head of its depth, whatever its parent.
        drafts = ids[:, tree.depth[1:] - 1, tree.rank[1:]]
        tokens = jnp.concatenate([chain.pending(canvas), drafts], axis=1)
        arrays = static.proposal_arrays(tree, batch)
        return Proposal(tokens=tokens, valid=jnp.ones_like(tokens, bool), **arrays), state

    return Drafter(
        init=features.start(models.target),
        absorb=features.absorb,
        propose=propose,
        update=features.update,
        widths=(1, tree.num_nodes),
        max_depth=tree.max_depth,
    )
