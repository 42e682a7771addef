"""The target learns the next token: plain training of a language model.

Loss: the mean cross-entropy on the next token, over tokens that count: not a prompt's.
"""

import dataclasses

from jaxdecode.core.protocols import Models
from jaxdecode.training import whole
from jaxdecode.training.objective import Objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """No settings."""


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the target."""
    del config
    model = models.target

    def loss(params, target_params, batch, key, moment):
        del target_params, key, moment
        hidden = whole.states_of(model, params, batch)
        errors, rates = whole.read(model, params, hidden[:, :, None], batch)
        return errors[0], {"accuracy": rates[0]}

    return Objective(init=whole.of_target, loss=loss, export=whole.as_target)
