"""Medusa-2: the target learns with its heads, so that they are right more often.

Loss: CE of the target on the next token, and `heads_weight` times the loss of Medusa-1
(arXiv:2401.10774 section 2.2.2). Differs: the weight is constant, one of the authors' schedules.
What decodes is the changed target: its text is its own, no longer the original's.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.heads import medusa as heads
from jaxdecode.training import losses, whole
from jaxdecode.training.objective import Export, Objective, Start, ahead, program
from jaxdecode.training.objectives import medusa


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(medusa.Config):
    """Settings.

    Attributes:
        heads_weight: weight of the heads' loss beside the target's.
    """

    heads_weight: float = 0.2

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
        checks.number("heads_weight", self.heads_weight, "at least 0", lambda x: x >= 0)


def make(config: Config, models: Models) -> Objective:
    """The objective of heads and their target."""
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    target = model.target

    def init(key, weights):
        own = heads.init(shape, model.config, key, weights.target)
        return Start({"heads": own, "target": whole.start(weights.target).params})

    def loss(params, target_params, batch, key):
        del target_params, key
        moving = params["target"]
        hidden = target.forward(moving, batch.tokens, program(batch), None).hidden
        guesses = [ahead(batch, k + 1) for k in range(shape.num_heads + 1)]
        wanted, weight = (jnp.stack(arrays, -1) for arrays in zip(*guesses, strict=True))

        def per_token(hidden, wanted):
            def said(states):
                return target.logits(moving, states)

            behind = heads.logits(shape, params["heads"], hidden, said)
            scores = jnp.concatenate([said(hidden)[:, None], behind], axis=1)
            return losses.cross_entropy(scores, wanted), scores.argmax(-1) == wanted

        errors, hits = losses.over_tokens(per_token, hidden, wanted)
        rates = losses.per_head(hits, weight)
        metrics = {f"accuracy.{k}": rate for k, rate in enumerate(rates[1:])}
        metrics["accuracy.next"] = rates[0]
        return joint(losses.per_head(errors, weight), config), metrics

    def export(params, target):
        del target
        return Export(heads=params["heads"], target=whole.apart(params["target"]))

    return Objective(init=init, loss=loss, export=export)


def joint(errors: Float[Array, "H"], config: Config) -> Float[Array, ""]:
    """The weighted sum of the target's error, which comes first, and the heads'."""
    return errors[0] + config.heads_weight * medusa.combine(errors[1:], config.decay)
