"""An autoregressive model learns to fill masked tokens of a block, more often those that come late.

Every block has a time t, uniform. Its i-th of b tokens is masked at the rate

    p_i = min(1, c w_i),  w_i = exp(slant (1 - t) i),  with c such that the rates sum to t b

(arXiv:2512.14067, in which rates are t b w_i / sum(w)): left-to-right habits, which decoding by
confidence has, are met in training; at t = 1 all are alike. Blocks see themselves and the clean
blocks before them, as in `bd3`; a token is scored at its own place. Loss: the mean cross-entropy of
masked tokens (`weighting="plain"`), or each over its rate ("inverse").

Differs from the paper: what clipping at 1 takes from late tokens is given to the others, so that as
many are masked as t says; `slant` is ours, since theirs was not found. The bound on the likelihood
does not hold for unequal rates: the loss is no estimate of it.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.errors import InputError
from jaxdecode.training import denoising, losses, schedules, whole
from jaxdecode.training.objective import Objective
from jaxdecode.training.objectives.mdlm import FIRST


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        mask_token: stands in masked places; None takes the target's own.
        block: positions per block, counted from the beginning of a text.
        slant: how much more late tokens of a block are masked; 0 masks all alike.
        weighting: "plain" or "inverse": errors over their rates.
    """

    mask_token: int | None = None
    block: int = 32
    slant: float = 0.1
    weighting: Literal["plain", "inverse"] = "plain"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if self.mask_token is not None:
            checks.integer("mask_token", self.mask_token, low=0)
        checks.integer("block", self.block, low=1)
        checks.number("slant", self.slant, "at least 0", lambda x: x >= 0)
        if self.weighting not in ("plain", "inverse"):
            raise InputError(
                f"weighting={self.weighting!r} is not known; use 'plain' or 'inverse'."
            )


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the target.

    Raises:
        InputError: there is no mask token.
    """
    asked = denoising.setting(models.target, config.mask_token, False, config.block)

    def loss(params, target_params, batch, key, moment):
        del target_params, moment
        level, mask = jax.random.split(key)
        weight, group = batch.weight, denoising.groups(batch, config.block)
        t = FIRST + (1 - FIRST) * schedules.antithetic(level, *batch.tokens.shape)
        place = (batch.positions % config.block)[..., None]
        of_group = rates(t, config.block, config.slant)
        of_token = jnp.take_along_axis(of_group, group[..., None], axis=1)
        rate = jnp.take_along_axis(of_token, place, axis=2)[..., 0]
        masked = denoising.drawn(mask, rate, weight)
        hidden = denoising.states(asked, params, batch, masked)
        errors, hits = denoising.read(asked, params, hidden, batch.tokens)
        found = denoising.metrics(hits, masked, weight)
        if config.weighting == "inverse":
            return losses.weighted_mean(errors * masked / rate, weight), found
        return losses.weighted_mean(errors, weight * masked), found

    return Objective(init=whole.of_target, loss=loss, export=denoising.exporting(asked))


def rates(t: Float[Array, "*B"], size: int, slant: float) -> Float[Array, "*B N"]:
    """Rates at which the tokens of a block are masked; they sum to t times their number.

    Args:
        t: time of the block.
        size: its tokens.
        slant: how much more late ones are masked.
    """
    # Largest first, and relative to it: nothing overflows.
    back = -jnp.arange(size, dtype=jnp.float32)
    weight = jnp.exp(slant * (1 - t[..., None]) * back)
    rest = jnp.cumsum(weight[..., ::-1], axis=-1)[..., ::-1]
    # With the k largest at 1, the others share what is left; the first k that leaves none above 1.
    factor = (t[..., None] * size - jnp.arange(size)) / rest
    fits = factor * weight <= 1
    first = jnp.argmax(fits, axis=-1)[..., None]
    chosen = jnp.take_along_axis(factor, first, axis=-1)
    found = jnp.where(jnp.arange(size) < first, 1.0, chosen * weight)
    return jnp.where(fits.any(-1, keepdims=True), jnp.clip(found, 0, 1), 1.0)[..., ::-1]
