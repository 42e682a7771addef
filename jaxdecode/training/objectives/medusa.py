"""Medusa-1: cross-entropy of every head on the token it guesses; the target is frozen.

Loss: sum over heads k (from 0) of decay^(k+1) CE(head k, token k + 2 places on)
(arXiv:2401.10774 section 2.2.1).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.heads import medusa
from jaxdecode.training import losses
from jaxdecode.training.objective import Objective, Start, ahead, heads_only, program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        decay: weight of each head relative to the one before.
    """

    decay: float = 0.8

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("decay", self.decay, "a number in (0, 1]", lambda x: 0 < x <= 1)


def make(config: Config, models: Models) -> Objective:
    """The objective of heads on a frozen target."""
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    target = model.target

    def init(key, weights):
        return Start(medusa.init(shape, model.config, key, weights.target))

    def loss(params, target_params, batch, key):
        del key
        output = target.forward(target_params, batch.tokens, program(batch), None)
        guesses = [ahead(batch, k + 2) for k in range(shape.num_heads)]
        wanted, weight = (jnp.stack(arrays, -1) for arrays in zip(*guesses, strict=True))

        def per_token(hidden, wanted):
            scores = medusa.logits(
                shape, params, hidden, lambda states: target.logits(target_params, states)
            )
            return losses.cross_entropy(scores, wanted), scores.argmax(-1) == wanted

        hidden = jax.lax.stop_gradient(output.hidden)
        errors, hits = losses.over_tokens(per_token, hidden, wanted)
        rates = losses.per_head(hits, weight)
        metrics = {f"accuracy.{k}": rate for k, rate in enumerate(rates)}
        return combine(losses.per_head(errors, weight), config.decay), metrics

    return Objective(init=init, loss=loss, export=heads_only)


def combine(errors: Float[Array, "H"], decay: float) -> Float[Array, ""]:
    """The weighted sum of the heads' errors."""
    return (errors * decay ** jnp.arange(1, len(errors) + 1)).sum()
