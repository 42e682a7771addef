"""Hydra++: the prefix layer and the heads learn the target's law of every token they guess.

Loss: that of Hydra with the target's law in place of the tokens, all heads alike (arXiv:2402.05109;
the authors' code). Differs: no dropout, and no noise on embeddings.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxdecode.core.protocols import Models
from jaxdecode.heads import hydra_pp
from jaxdecode.training import features
from jaxdecode.training.objective import Objective, Start, heads_only, program
from jaxdecode.training.objectives import hydra


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(hydra.Learning):
    """Settings.

    Attributes:
        decay: weight of each head relative to the one before.
        token_weight: weight of the texts' tokens.
        law_weight: weight of the target's law.
    """

    decay: float = 1.0
    token_weight: float = 0.0
    law_weight: float = 1.0


def make(config: Config, models: Models) -> Objective:
    """The objective of a prefix layer and heads on a frozen target."""
    assert models.heads is not None
    shape, model = models.heads.shape, models.target
    prefix = hydra_pp.bind(model.config, model.kv_dtype)

    def init(key, weights, texts):
        del texts
        return Start(hydra_pp.init(shape, model.config, key, weights.target))

    loss = hydra.loss_of(config, models, behind(prefix), hydra.step_of(models))
    return Objective(
        init=init, loss=loss, export=heads_only, features=features.states(model.target)
    )


def behind(prefix: hydra_pp.Prefix) -> Callable[..., Any]:
    """What heads behind a prefix layer are told first."""

    def read(params, frozen, batch, hidden):
        del frozen
        return prefix.states(params, hidden, program(batch))

    return read
