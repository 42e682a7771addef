"""Autoregressive weights learn answers from left to right first, then to fill them in any order.

The run has two phases on the same data (arXiv:2505.16990). In the first, its share `causal`, the
model learns the next token of answers, under a causal mask. In the second every answer has a time
t, uniform; its tokens are masked with probability t, every token sees the whole text, and the loss
is the mean cross-entropy of masked tokens, without a weight of time. A token is scored by the state
of the place before it in both, so that the head keeps its meaning. With `complementary`, the second
phase sees a text twice, the other half of the answer being masked in the second view.

Held-out texts are measured by the second phase's loss, in both.

Differs from the paper: no images, and so no phase that aligns them; one schedule of the learning
rate for both phases, whose cosine is what makes the second one slower. The first token of a text is
not learned.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.training import denoising, losses, schedules, whole
from jaxdecode.training.objective import Batch, Objective
from jaxdecode.training.objectives.mdlm import FIRST


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        mask_token: stands in masked places; None takes the target's own.
        causal: share of the run, at its beginning, that is the first phase.
        complementary: whether the second phase sees a text twice.
    """

    mask_token: int | None = None
    causal: float = 0.5
    complementary: bool = False

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if self.mask_token is not None:
            checks.integer("mask_token", self.mask_token, low=0)
        checks.number("causal", self.causal, "a number in [0, 1]", lambda x: 0 <= x <= 1)


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the target.

    Raises:
        InputError: there is no mask token.
    """
    model = models.target
    asked = denoising.setting(model, config.mask_token, True, 0)

    def continues(params, batch, key):
        del key
        hidden = whole.states_of(model, params, batch)
        errors, rates = whole.read(model, params, hidden[:, :, None], batch)
        return errors[0], {"accuracy": rates[0], "masked": jnp.zeros(())}

    def fills(params, batch, key):
        weight, total, found = denoising.learned(batch, True), jnp.zeros(()), {}
        first = drawn(batch, weight, key)
        views = (first, ~first & (weight > 0)) if config.complementary else (first,)
        for masked in views:
            hidden = denoising.states(asked, params, batch, masked)
            errors, hits = denoising.read(asked, params, hidden, batch.tokens)
            total += losses.weighted_mean(errors, weight * masked) / len(views)
            # Of the first view, which every run has.
            found = found or denoising.metrics(hits, masked, weight)
        return total, found

    def loss(params, target_params, batch, key, moment):
        del target_params
        is_first = moment.share < config.causal
        return jax.lax.cond(is_first, continues, fills, params, batch, key)

    def judge(params, target_params, batch, key, moment):
        del target_params, moment
        return fills(params, batch, key)

    return Objective(
        init=whole.of_target, loss=loss, export=denoising.exporting(asked), judge=judge
    )


def drawn(batch: Batch, weight: Array, key: Array) -> Bool[Array, "B T"]:
    """The tokens that are masked in the second phase.

    Args:
        batch: texts.
        weight: of tokens that may be masked.
        key: of the draw.
    """
    level, mask = jax.random.split(key)
    times = FIRST + (1 - FIRST) * schedules.antithetic(level, *batch.tokens.shape)
    rate = jnp.take_along_axis(times, denoising.groups(batch), axis=1)
    return denoising.drawn(mask, rate, weight)
