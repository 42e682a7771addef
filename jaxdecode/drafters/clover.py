"""Clover: heads that hand a state from one to the next, each with the token drafted before.

Exactness: L0 under sample_match. Cost: one row of a layer per step, a head and the target's output
matrix per inner node of the tree, and keys and values of one more layer.
Source: arXiv:2405.00263, whose code is not public; differs: the tree is a static one.
"""

import dataclasses

from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.drafters import hydra, hydra_pp
from jaxdecode.heads import clover


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(hydra.Config):
    """Options: those of Hydra."""


def make(config: Config, models: Models) -> Drafter:
    """The drafter; its state is the past of the layer in front."""
    target = models.target.target
    assert target.embed is not None
    embed = target.embed

    def scoring(weights):
        def score(level, state, tokens):
            state = clover.step(weights.heads, level, state, embed(weights.target, tokens))
            return target.logits(weights.target, state), state

        return score

    return hydra_pp.behind(models, hydra.tree_of(config, models), scoring)
