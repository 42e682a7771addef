"""Clover-2: heads learn tokens and the target's own states of them; the target is frozen.

Loss: sum over heads i (from 0) of decay^i (CE with the token i + 2 places on + `state_weight` times
the smooth L1 distance between what the target's head reads of the guess and the target's own state
that it reads the same token from) (arXiv:2408.00264).
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.heads import clover2
from jaxdecode.training import features, losses
from jaxdecode.training.objective import Objective, Start, ahead, heads_only, program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        decay: weight of each head relative to the one before.
        state_weight: weight of the distance between states.
    """

    decay: float = 0.7
    state_weight: float = 10.0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("decay", self.decay, "a number in (0, 1]", lambda x: 0 < x <= 1)
        checks.number("state_weight", self.state_weight, "at least 0", lambda x: x >= 0)


def make(config: Config, models: Models) -> Objective:
    """The objective of heads on a frozen target."""
    assert models.heads is not None
    shape, model = models.heads.shape, models.target
    parts, target = clover2.bind(shape, model.config, model.kv_dtype), model.target
    tap = f"layer.{model.config.num_layers - 1}"

    def init(key, weights, texts):
        del texts
        return Start(clover2.init(shape, model.config, key, weights.target))

    def loss(params, target_params, batch, key, moment):
        del key, moment
        frozen, mask = jax.lax.stop_gradient(target_params), program(batch)
        output = target.forward(frozen, batch.tokens, mask, None, (tap,))
        before = output.taps[tap]
        following = parts.embed(frozen, ahead(batch, 1)[0])
        x = parts.attend(params["extract"], before, following).astype(before.dtype)
        x, _ = parts.layers(params, x, mask)
        total, metrics = jnp.float32(0), {}
        for i in range(shape.num_heads):
            if i == 0:
                read = parts.first(params, x)
            else:
                read, x = parts.later(params, x, parts.embed(frozen, ahead(batch, i + 1)[0]))
            wanted, weight = ahead(batch, i + 2)

            def per_token(read, wanted):
                scores = target.logits(frozen, read)
                return losses.cross_entropy(scores, wanted), scores.argmax(-1) == wanted

            errors, hits = losses.over_tokens(per_token, read, wanted)
            apart = losses.smooth_l1(read, features.shift(output.hidden, i + 1))
            both = losses.weighted_mean(errors + config.state_weight * apart, weight)
            total += config.decay**i * both
            metrics[f"accuracy.{i}"] = losses.weighted_mean(hits, weight)
        return total, metrics

    return Objective(init=init, loss=loss, export=heads_only)
