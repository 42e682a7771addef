"""A filter learns which candidates of a block are already what the text will have.

Extremely greedy replays of the target's own answers: each pass decides all slots whose likeliest
token is the answer's, and a block in which there is none is given whole. Every pass is a lesson:
the target's probabilities of what the slots hold, and which of them are right; decided ones are.
Loss: cross-entropy of right and wrong over the slots of all passes (arXiv:2509.25188 section 4).

The target is frozen, and `cache: true` replays each text once. The answers must be greedy ones of
`llada` with blocks of `shape.block_length` slots.

Differs from the release: batches in place of all lessons in every step.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdecode.core.protocols import Models
from jaxdecode.errors import InputError
from jaxdecode.heads import learn2pd
from jaxdecode.training import denoising, losses, replays
from jaxdecode.training.objective import Objective, Start, heads_only


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """No settings: the filter's shape says how long blocks are."""


def make(config: Config, models: Models) -> Objective:
    """The objective of a filter for a frozen target.

    Raises:
        InputError: the target does not fill slots, or has blocks of another length.
    """
    del config
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    size = shape.block_length
    asked = denoising.own_setting(model)
    block = asked.denoiser.block
    if block not in (0, size):
        raise InputError(
            f"shape.block_length={size} does not fit the target, which has blocks of {block} "
            f"tokens; use {block}."
        )

    def init(key, weights, texts):
        del texts
        return Start(learn2pd.init(shape, model.config, key, weights.target))

    def features(target_params, batch):
        frozen = jax.lax.stop_gradient(target_params)
        return replays.replay(asked, frozen, batch, size, replays.right_ones)

    def loss(params, target_params, batch, key, moment):
        del moment
        known = batch.features is not None
        trace = batch.features if known else features(target_params, batch)
        laid = replays.blocks(asked, batch, size)
        seen, exists, passes = replays.lessons(trace, laid, size, key)
        odds = learn2pd.scores(shape, params, seen.confidence)
        wanted = seen.right | ~seen.open
        weight = (exists[:, :, None] & passes[..., None]).astype(jnp.float32)
        error = jax.nn.softplus(jnp.where(wanted, -odds, odds))
        open = seen.open.astype(jnp.float32)
        metrics = {
            "accuracy": losses.weighted_mean((odds > 0) == wanted, open),
            "right": losses.weighted_mean(seen.right, open),
        }
        return losses.weighted_mean(error, weight), metrics

    return Objective(init=init, loss=loss, export=heads_only, features=features)
