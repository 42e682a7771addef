"""Hydra: every head learns the token it guesses, given the tokens before it; the target is frozen.

Loss: sum over heads k (from 0) of decay^(k+1) times CE with the token k + 2 places on, times
`token_weight`, and the cross-entropy with the target's own law of that token, times `law_weight`
(arXiv:2402.05109).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.heads import hydra
from jaxdecode.training import features, losses
from jaxdecode.training.objective import Objective, Start, ahead, heads_only, program
from jaxdecode.training.objectives.medusa import combine

# (params, head, what the head before left [N, ...], the token before its guess as an embedding
# [N, D], the target's head) -> (scores [N, V], what it leaves to the next)
Step = Callable[..., tuple[Any, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        decay: weight of each head relative to the one before.
        token_weight: weight of the texts' tokens.
        law_weight: weight of the target's law.
    """

    decay: float = 0.8
    token_weight: float = 1.0
    law_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("decay", self.decay, "a number in (0, 1]", lambda x: 0 < x <= 1)
        checks.number("token_weight", self.token_weight, "at least 0", lambda x: x >= 0)
        checks.number("law_weight", self.law_weight, "at least 0", lambda x: x >= 0)


def make(config: Config, models: Models) -> Objective:
    """The objective of heads that read the target's states as they are."""
    assert models.heads is not None
    shape, model = models.heads.shape, models.target

    def init(key, weights):
        return Start(hydra.init(shape, model.config, key, weights.target))

    loss = loss_of(config, models, lambda params, frozen, batch, hidden: hidden, step_of(models))
    return Objective(init=init, loss=loss, export=heads_only)


def step_of(models: Models) -> Step:
    """A step of Hydra heads: a head leaves to the next all that it read."""
    assert models.heads is not None
    shape = models.heads.shape

    def step(params, head, told, row, target_logits):
        inputs = jnp.concatenate([told.astype(row.dtype), row], axis=-1)
        return hydra.logits(shape, params, head, inputs, target_logits), inputs

    return step


def loss_of(
    config: Config, models: Models, read: Callable[..., Any], step: Step
) -> Callable[..., Any]:
    """The loss of heads that read one token after another.

    Args:
        config: settings.
        models: the target and the heads.
        read: (params, target params, batch, the target's states) -> what the first head is told.
        step: a head's scores.
    """
    assert models.heads is not None and models.target.target.embed is not None
    target, shape = models.target.target, models.heads.shape
    embed, places = models.target.target.embed, range(shape.num_heads)

    def loss(params, target_params, batch, key):
        del key
        frozen = jax.lax.stop_gradient(target_params)
        hidden = target.forward(frozen, batch.tokens, program(batch), None).hidden
        guesses = [ahead(batch, k + 2) for k in places]
        wanted, weight = (jnp.stack(arrays, -1) for arrays in zip(*guesses, strict=True))
        # Head k reads the tokens 1 to k + 1 places on; the target says its token one place later.
        seen = jnp.stack([ahead(batch, k + 1)[0] for k in places], -1)
        later = jnp.stack([features.shift(hidden, k + 1) for k in places], 2)

        def per_token(state, seen, later, wanted):
            told, scores = state, []
            for k in places:
                row = embed(frozen, seen[:, None, k])[:, 0]
                own, told = step(params, k, told, row, lambda x: target.logits(frozen, x))
                scores.append(own)
            scores = jnp.stack(scores, 1)
            errors = config.token_weight * losses.cross_entropy(scores, wanted)
            if config.law_weight:
                law = jax.nn.softmax(target.logits(frozen, later))
                errors += config.law_weight * losses.soft_cross_entropy(scores, law)
            return errors, scores.argmax(-1) == wanted

        state = read(params, frozen, batch, hidden)
        errors, hits = losses.over_tokens(per_token, state, seen, later, wanted)
        rates = losses.per_head(hits, weight)
        metrics = {f"accuracy.{k}": rate for k, rate in enumerate(rates)}
        return combine(losses.per_head(errors, weight), config.decay), metrics

    return loss
