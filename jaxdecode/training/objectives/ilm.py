"""The target learns to insert: which tokens are missing from a text, and after which others.

Of every answer a number of tokens, uniform from none to all, is taken away, each choice of so many
alike: a rate is drawn per text, and each token goes by itself at that rate. What is left keeps its
order, sees itself only, and is counted anew. Loss of a text, with n tokens taken:

    -1/n sum of log p(place, token) over what was taken    one softmax over all places and tokens
    + the cross-entropy of "nothing was taken"             from the first token's state

A token that was taken belongs to the place of the last token before it that is left. Texts weigh
alike. The first token of a text and its prompt always stay.

Source: arXiv:2505.05755 section 3. Differs: the rate gives the uniform number without sorting; that
the text is whole is said by the score of the mask token, which no text holds.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.training import denoising, losses, schedules, whole
from jaxdecode.training.objective import Batch, Objective, ahead


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        mask_token: a token that texts do not use, whose score says that a text is whole; None
            takes the target's own.
    """

    mask_token: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if self.mask_token is not None:
            checks.integer("mask_token", self.mask_token, low=0)


class Left(NamedTuple):
    """What is left of the texts of a batch.

    Attributes:
        batch: the batch with positions as they are counted now, and what was taken out of sight.
        after: for each token the last one before it that is left.
        places: tokens after which something may be inserted.
    """

    batch: Batch
    after: Int[Array, "B T"]
    places: Bool[Array, "B T"]


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the target.

    Raises:
        InputError: there is no mask token.
    """
    asked = denoising.setting(models.target, config.mask_token, False, 0)
    asked = asked._replace(denoiser=dataclasses.replace(asked.denoiser, inserts=True))

    def loss(params, target_params, batch, key, moment):
        del target_params, moment
        level, choice = jax.random.split(key)
        # The first token scores what is inserted after it, and cannot be inserted.
        weight = denoising.learned(batch, True)
        rates = schedules.antithetic(level, *batch.tokens.shape)
        rate = jnp.take_along_axis(rates, denoising.groups(batch), axis=1)
        taken = denoising.drawn(choice, rate, weight)
        return _loss(asked, params, batch, weight, taken)

    return Objective(init=whole.of_target, loss=loss, export=denoising.exporting(asked))


def left(batch: Batch, taken: Bool[Array, "B T"]) -> Left:
    """The texts without what was taken; no array gets shorter."""
    index = jnp.arange(batch.tokens.shape[1])
    gone = jnp.cumsum(taken, axis=1)
    begins = jax.lax.cummax(jnp.where(batch.positions == 0, gone, 0), axis=1)
    kept = ~taken & (batch.segments > 0)
    learned = (batch.weight > 0) | (ahead(batch, 1)[1] > 0)
    return Left(
        batch=dataclasses.replace(
            batch,
            positions=jnp.maximum(batch.positions - (gone - begins), 0),
            segments=jnp.where(taken, -batch.segments, batch.segments),
        ),
        after=jax.lax.cummax(jnp.where(kept, index, 0), axis=1),
        places=kept & learned,
    )


def _loss(
    asked: denoising.Setting,
    params,
    batch: Batch,
    weight: Float[Array, "B T"],
    taken: Bool[Array, "B T"],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    target, rest = asked.model.target, left(batch, taken)
    program = denoising.program(rest.batch)
    hidden = target.forward(params, batch.tokens, program, None).hidden
    mask_token = asked.denoiser.mask_token

    def read(states, wanted):
        """Log of what all tokens have at a place; what the wanted one and the mask token have."""
        scores = target.logits(params, states).astype(jnp.float32)
        whole = scores[..., mask_token]
        scores = scores.at[..., mask_token].set(-1e9)
        chosen = jnp.take_along_axis(scores, wanted[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(scores, axis=-1), chosen, whole

    everything, _, whole_scores = losses.over_tokens(read, hidden, batch.tokens)
    before = jnp.take_along_axis(hidden, rest.after[..., None], axis=1)
    _, chosen, _ = losses.over_tokens(read, before, batch.tokens)
    same = batch.segments[:, :, None] == batch.segments[:, None, :]
    among = jnp.where(same & rest.places[:, None, :], everything[:, None, :], -1e9)
    errors = jax.nn.logsumexp(among, axis=-1) - chosen
    num_taken = (same & taken[:, None, :]).sum(-1)
    inserted = (errors * taken / jnp.maximum(num_taken, 1)).sum()
    learns = (same & (weight > 0)[:, None, :]).any(-1)
    first = (batch.positions == 0) & (batch.segments > 0) & learns
    is_whole = num_taken == 0
    ends = jax.nn.softplus(jnp.where(is_whole, -whole_scores, whole_scores))
    num_texts = jnp.maximum(first.sum(), 1)
    known = losses.weighted_mean(((whole_scores > 0) == is_whole).astype(jnp.float32), first)
    metrics = {
        "insertion": inserted / num_texts,
        "whole": known,
        "taken": losses.weighted_mean(taken.astype(jnp.float32), weight),
    }
    return (inserted + (ends * first).sum()) / num_texts, metrics
