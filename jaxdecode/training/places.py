"""One block of every text, partly undecided: where parts that help to fill a block are trained.

As in decoding, all before the block is known and all after it is undecided. A share of the block's
slots, uniform over (0, 1) and spread over the texts of a batch, is undecided too, each by itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdecode.training import denoising, replays, schedules
from jaxdecode.training.objective import Batch


class Place(NamedTuple):
    """Where texts are.

    Attributes:
        inside: tokens of the block.
        open: those of them that are undecided.
        behind: learned tokens after the block.
    """

    inside: Bool[Array, "B T"]
    open: Bool[Array, "B T"]
    behind: Bool[Array, "B T"]


def draw(asked: denoising.Setting, batch: Batch, laid: replays.Blocks, key: Array) -> Place:
    """A place in every text that has something to be filled.

    Args:
        asked: how the model is asked.
        batch: texts.
        laid: their blocks.
        key: of the draws.
    """
    which, rate, mask = jax.random.split(key, 3)
    chance = jax.random.uniform(which, batch.tokens.shape)
    chance = jnp.take_along_axis(chance, jnp.maximum(laid.number, 0), axis=1)
    best = _per_text(jnp.where(laid.learned, chance, -1.0), batch)
    inside = laid.inside & (chance == best)
    number = _per_text(jnp.where(inside, laid.number, -1), batch)
    group = denoising.groups(batch)
    share = jnp.take_along_axis(schedules.antithetic(rate, *batch.tokens.shape), group, axis=1)
    weight = denoising.learned(batch, asked.denoiser.shifted)
    open = inside & laid.learned & denoising.drawn(mask, share, weight)
    return Place(inside, open, laid.learned & (laid.number > number))


def _per_text(values: Array, batch: Batch) -> Int[Array, "B T"]:
    """The largest value of each token's text."""
    return replays.per_block(jax.ops.segment_max, values, batch.segments)
