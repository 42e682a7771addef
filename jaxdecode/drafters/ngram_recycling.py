"""Prompt lookup and token recycling in one proposal: a chain from the text, a tree from the table.

Copies are long where the text repeats itself, and the table is good for a token or two anywhere
else. The chain comes first in the order of nodes, so that a step in which it stands alone costs
no more than prompt lookup.

Exactness: L0 under sample_match. Cost: that of both drafters.
Source: the two methods (`prompt_lookup`, and arXiv:2408.08696); putting them together is ours.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import Proposal
from jaxdecode.drafters import prompt_lookup, token_recycling
from jaxdecode.errors import InputError
from jaxdecode.trees import chain, static

OnMatch = Literal["both", "chain"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        tree: name of a shipped tree (`configs/trees`) or path of a tree file.
        num_candidates: followers kept per token; more than the tree's highest rank.
        num_draft: tokens of the chain.
        max_ngram: longest suffix that is looked for.
        min_ngram: shortest suffix that counts as a match.
        on_match: what is proposed where the text matches: "both" accepts most per target call,
            "chain" alone costs less of a processor that is busy with few tokens.
    """

    tree: str = "token_recycling_80"
    num_candidates: int = 8
    num_draft: int = 10
    max_ngram: int = 3
    min_ngram: int = 1
    on_match: OnMatch = "both"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        token_recycling.Config(tree=self.tree, num_candidates=self.num_candidates)
        self.lookup()
        if self.on_match not in get_args(OnMatch):
            raise InputError(
                f"on_match={self.on_match!r} is not known; use {' or '.join(get_args(OnMatch))}."
            )

    def lookup(self) -> prompt_lookup.Config:
        """The part that is prompt lookup's."""
        return prompt_lookup.Config(
            num_draft=self.num_draft, max_ngram=self.max_ngram, min_ngram=self.min_ngram
        )


def make(config: Config, models: Models) -> Drafter:
    """The drafter; its state and memory are those of token recycling."""
    tree, look = static.load(config.tree), config.lookup()
    parent, depth = shape(tree, config.num_draft)
    max_depth = int(depth.max())

    def row(tokens, length, followers):
        copied, found, _ = prompt_lookup.lookup(tokens, length, look)
        below, valid = token_recycling.draft(followers, tokens[length], tree)
        if config.on_match == "chain":
            valid &= ~found[0]
        joined = jnp.concatenate([below[:1], copied, below[1:]])
        return joined, jnp.concatenate([jnp.ones(1, bool), found, valid[1:]])

    def propose(weights, state, request, canvas, view):
        del weights, request, view
        tokens, valid = jax.vmap(row)(canvas.tokens, canvas.length, state.followers)
        proposal = Proposal(
            tokens=tokens,
            parent=jnp.broadcast_to(parent, tokens.shape),
            depth=jnp.broadcast_to(depth, tokens.shape),
            valid=valid,
            max_depth=max_depth,
            max_children=tree.max_children + 1,
        )
        return proposal, state

    alone = token_recycling.make(
        token_recycling.Config(tree=config.tree, num_candidates=config.num_candidates), models
    )
    widths = (*chain.widths(config.num_draft), len(parent))
    return alone._replace(propose=propose, widths=widths, max_depth=max_depth)


def shape(tree: static.StaticTree, num_draft: int) -> tuple[np.ndarray, np.ndarray]:
    """Parent and depth of the nodes: the root, the chain, the tree without its root."""
    parent, depth = chain.shape(num_draft)
    moved = np.where(tree.parent > 0, tree.parent + num_draft, 0)[1:]
    return np.append(parent, moved).astype(np.int32), np.append(depth, tree.depth[1:])
