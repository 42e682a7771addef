"""EAGLE: the layer learns the target's next state, and what its head says of it.

Loss: smooth L1 distance of the states + `token_weight` times the cross-entropy of the two laws;
the states that it reads are disturbed, for in decoding they will be guesses. The target is frozen
(arXiv:2401.15077 section 3.3).
"""

import dataclasses

import jax

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.heads import eagle
from jaxdecode.training import features, losses
from jaxdecode.training.objective import Objective, Start, ahead, heads_only, program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        token_weight: weight of the laws' cross-entropy.
        noise: half-width of the uniform noise on the states; the release's for 2,048 tokens.
    """

    token_weight: float = 0.1
    noise: float = 0.025

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        for name in ("token_weight", "noise"):
            checks.number(name, getattr(self, name), "at least 0", lambda x: x >= 0)


def make(config: Config, models: Models) -> Objective:
    """The objective of heads on a frozen target."""
    assert models.heads is not None
    shape, model = models.heads.shape, models.target
    parts = eagle.bind(shape, model.config, model.kv_dtype, model.target)

    def init(key, weights, texts):
        del texts
        return Start(eagle.init(shape, model.config, key, weights.target))

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen, mask = jax.lax.stop_gradient(target_params), program(batch)
        hidden = model.target.forward(frozen, batch.tokens, mask, None).hidden
        first, second = jax.random.split(key)
        following, _ = ahead(batch, 1)
        read = features.disturbed(first, hidden, config.noise)
        out, _ = eagle.run(parts, params, frozen, following, read, mask)
        wanted = features.shift(hidden, 1)
        apart, laws = features.compared(model.target, frozen, out, wanted, second)
        weight = ahead(batch, 2)[1]
        means = {name: losses.weighted_mean(values, weight) for name, values in laws.items()}
        distance = losses.weighted_mean(apart, weight)
        metrics = {"distance": distance, "divergence": means["soft"], "accuracy.0": means["hit"]}
        return distance + config.token_weight * means["soft"], metrics

    return Objective(init=init, loss=loss, export=heads_only)
