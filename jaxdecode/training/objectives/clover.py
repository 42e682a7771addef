"""Clover: every head learns the token it guesses, given the tokens before it; the target is frozen.

Loss: sum over heads k (from 0) of decay^(k+1) CE(head k, token k + 2 places on), as Medusa's
(arXiv:2405.00263 does not give its weights).
"""

import dataclasses

from jaxdecode.core.protocols import Models
from jaxdecode.heads import clover
from jaxdecode.training import features
from jaxdecode.training.objective import Objective, Start, heads_only
from jaxdecode.training.objectives import hydra
from jaxdecode.training.objectives.hydra_pp import behind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(hydra.Learning):
    """Settings: those of Hydra."""


def make(config: Config, models: Models) -> Objective:
    """The objective of a layer and heads on a frozen target."""
    assert models.heads is not None
    shape, model = models.heads.shape, models.target
    prefix = clover.bind(model.config, model.kv_dtype)

    def init(key, weights, texts):
        del texts
        return Start(clover.init(shape, model.config, key, weights.target))

    def step(params, head, state, row, target_logits):
        state = clover.step(params, head, state, row)
        return target_logits(state), state

    loss = hydra.loss_of(config, models, behind(prefix), step)
    return Objective(
        init=init, loss=loss, export=heads_only, features=features.states(model.target)
    )
