"""An autoregressive model learns to fill masked tokens of a block; its scores stay one place ahead.

Every block has a time t, uniform; its tokens are masked with probability t. The text is seen twice:
with that mask, and with the other tokens masked instead, so that each token is learned exactly once
per pair. Loss: the mean cross-entropy over all of them, without a weight of time
(arXiv:2509.26328). Blocks see themselves and the clean blocks before them, as in `bd3`; a token is
scored by the state of the place before it, so that the weights keep their meaning.

Differs from the paper: the first token of a block is scored by the last state of the clean block
before it, as in decoding; blocks are counted from the beginning of a text, and packed texts do not
see each other, so none is padded to whole blocks. The first token of a text is not learned.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.training import denoising, losses, schedules, whole
from jaxdecode.training.objective import Objective
from jaxdecode.training.objectives.mdlm import FIRST


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        mask_token: stands in masked places; None takes the target's own.
        block: positions per block, counted from the beginning of a text.
        shifted: the state of a place scores the token after it.
    """

    mask_token: int | None = None
    block: int = 32
    shifted: bool = True

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if self.mask_token is not None:
            checks.integer("mask_token", self.mask_token, low=0)
        checks.integer("block", self.block, low=1)


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the target.

    Raises:
        InputError: there is no mask token.
    """
    asked = denoising.setting(models.target, config.mask_token, config.shifted, config.block)

    def loss(params, target_params, batch, key, moment):
        del target_params, moment
        weight = denoising.learned(batch, config.shifted)
        errors, hits = [], []
        for masked in views(config, batch, weight, key):
            hidden = denoising.states(asked, params, batch, masked)
            error, hit = denoising.read(asked, params, hidden, batch.tokens)
            errors.append(error * masked)
            hits.append(hit & masked)
        # Each token is masked in one view and no other.
        found = {"accuracy": losses.weighted_mean((hits[0] | hits[1]).astype(jnp.float32), weight)}
        return losses.weighted_mean(errors[0] + errors[1], weight), found

    return Objective(init=whole.of_target, loss=loss, export=denoising.exporting(asked))


def views(config, batch, weight, key):
    """The two masks: together they hold each token that is learned exactly once."""
    level, mask = jax.random.split(key)
    t = schedules.antithetic(level, *batch.tokens.shape)
    group = denoising.groups(batch, config.block)
    rate = jnp.take_along_axis(FIRST + (1 - FIRST) * t, group, axis=1)
    masked = denoising.drawn(mask, rate, weight)
    return masked, ~masked & (weight > 0)
