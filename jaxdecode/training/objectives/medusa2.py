"""Medusa-2: the target learns with its heads, so that they are right more often.

Loss: CE of the target on the next token, and `heads_weight` times the loss of Medusa-1
(arXiv:2401.10774 section 2.2.2). Fresh heads are wrong at first, and what that says to the target
would only disturb it; so there are two stages. In the first, `alone` of the run, the heads learn by
themselves, by the loss of Medusa-1, and the target stays as it is. In the second the heads' weight
rises from 0, by `rise`, over the part `rising` of the stage. With t the share of that part,

    "constant" 1 at once    "linear" t    "sine" sin(t pi / 2)

times `heads_weight`. Differs: the authors train the stages in two runs, each with a schedule of the
learning rate of its own, and the heads four times as fast as the target.
What decodes is the changed target: its text is its own, no longer the original's.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.errors import InputError
from jaxdecode.heads import medusa as heads
from jaxdecode.training import losses, whole
from jaxdecode.training.objective import Export, Moment, Objective, Start, ahead, program
from jaxdecode.training.objectives import medusa

Rise = Literal["constant", "linear", "sine"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        decay: weight of each head relative to the one before.
        heads_weight: weight of the heads' loss beside the target's.
        alone: share of the run, at its beginning, in which only the heads learn.
        rise: how the heads' weight rises after that.
        rising: share of the rest of the run over which it does.
    """

    decay: float = 0.8
    heads_weight: float = 0.2
    alone: float = 0.0
    rise: Rise = "constant"
    rising: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("decay", self.decay, "a number in (0, 1]", lambda x: 0 < x <= 1)
        checks.number("heads_weight", self.heads_weight, "at least 0", lambda x: x >= 0)
        checks.number("alone", self.alone, "from 0 to below 1", lambda x: 0 <= x < 1)
        if self.rise not in get_args(Rise):
            known = ", ".join(get_args(Rise))
            raise InputError(f"rise={self.rise!r} is not known; use one of {known}.")
        checks.number("rising", self.rising, "a number in (0, 1]", lambda x: 0 < x <= 1)


def make(config: Config, models: Models) -> Objective:
    """The objective of heads and their target."""
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    target = model.target

    def init(key, weights, texts):
        del texts
        own = heads.init(shape, model.config, key, weights.target)
        return Start({"heads": own, "target": whole.start(weights.target).params})

    def loss(params, target_params, batch, key, moment):
        del target_params, key
        learns = moment.share >= config.alone
        moving = held_back(params["target"], learns) if config.alone else params["target"]
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
        parts = losses.per_head(errors, weight)
        both = joint(parts, weight_at(moment, config), config)
        total = jnp.where(learns, both, medusa.combine(parts[1:], config.decay))
        return total, metrics

    def export(params, target):
        del target
        return Export(heads=params["heads"], target=whole.apart(params["target"]))

    return Objective(init=init, loss=loss, export=export)


def held_back(params: Any, learns: Bool[Array, ""]) -> Any:
    """The parameters; they have a gradient only if they learn."""
    return jax.tree.map(lambda x: jnp.where(learns, x, jax.lax.stop_gradient(x)), params)


def weight_at(moment: Moment, config: Config) -> Float[Array, ""]:
    """The heads' weight in the second stage."""
    over = (moment.share - config.alone) / ((1 - config.alone) * config.rising)
    over = jnp.clip(over, 0.0, 1.0)
    risen = {
        "constant": jnp.ones_like(over),
        "linear": over,
        "sine": jnp.sin(over * jnp.pi / 2),
    }[config.rise]
    return config.heads_weight * risen


def joint(
    errors: Float[Array, "H"], heads_weight: Float[Array, ""] | float, config: Config
) -> Float[Array, ""]:
    """The weighted sum of the target's error, which comes first, and the heads'."""
    return errors[0] + heads_weight * medusa.combine(errors[1:], config.decay)
