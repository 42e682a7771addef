"""Hidden transfer: each probe learns the law that the target has at its place.

Loss: as that of prompt tokens, `probed.distilled`. The target is frozen; the
matrices are all that is trained.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdecode.core.protocols import Models
from jaxdecode.heads import hidden_transfer
from jaxdecode.training import probed
from jaxdecode.training.objective import Objective, Start, heads_only
from jaxdecode.training.objectives import ppd
from jaxdecode.trees import injected


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ppd.Config):
    """The settings of `ppd`."""


def make(config: Config, models: Models) -> Objective:
    """The objective of transferred states in a frozen target."""
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    target = model.target
    layers = hidden_transfer.layers_of(shape, model.config.num_layers)

    def init(key, weights, texts):
        del texts
        return Start(hidden_transfer.init(shape, model.config, key, weights.target))

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen = jax.lax.stop_gradient(target_params)
        laid = probed.lay(batch, key, num_probes=shape.num_probes, num_places=config.num_places)
        slot = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1]), batch.tokens.shape)
        source = jnp.concatenate([slot, jnp.repeat(laid.places, shape.num_probes, axis=1)], axis=1)
        changes = hidden_transfer.changes(params, layers, laid.tokens, laid.probe, source)
        output = injected.forward(model, frozen, laid.tokens, laid.program, None, changes=changes)
        texts, asked = laid.split(output.hidden)
        return probed.distilled(
            target, frozen, laid, asked, texts, decay=config.decay, temperature=config.temperature
        )

    return Objective(init=init, loss=loss, export=heads_only)
