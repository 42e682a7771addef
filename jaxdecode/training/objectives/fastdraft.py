"""A draft model by the next token: first of any text, then of what the target answers.

Loss: cross-entropy on the next token that counts (arXiv:2411.11055). The data say which stage a run
is: plain text, all of which counts, or the target's own answers (`jaxdecode distill`), which teach
the target's law by its samples. Beyond the paper, `law` mixes in the divergence from the target's
law itself, for one more forward pass of the target per step:

    (1 - law) CE + law KL(target || draft)
"""

import dataclasses

import jax

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.training import losses, whole
from jaxdecode.training.objective import Objective, ahead


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        law: share of the divergence from the target's law; 0 never runs the target.
    """

    law: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("law", self.law, "from 0 to 1", lambda x: 0 <= x <= 1)


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the draft model."""
    assert models.draft is not None
    model = models.draft

    def loss(params, target_params, batch, key, moment):
        del key, moment
        wanted, weight = ahead(batch, 1)

        def per_token(own, wanted):
            scores = model.target.logits(params, own)
            return losses.cross_entropy(scores, wanted), scores.argmax(-1) == wanted

        own = whole.states_of(model, params, batch)
        found = losses.over_tokens(per_token, own, wanted)
        error, accuracy = (losses.weighted_mean(x, weight) for x in found)
        metrics = {"error": error, "accuracy": accuracy}
        if not config.law:
            return error, metrics
        scores = whole.both_scores(models, params, target_params)

        def divergence(own, taught):
            drafted, target = scores(own, taught)
            return losses.divergence(drafted, jax.nn.softmax(target))

        taught = jax.lax.stop_gradient(whole.states_of(models.target, target_params, batch))
        apart = losses.weighted_mean(losses.over_tokens(divergence, own, taught), weight)
        return (1 - config.law) * error + config.law * apart, metrics | {"divergence": apart}

    return Objective(init=whole.of_draft, loss=loss, export=whole.as_draft)
