"""An energy learns to tell what a text has in a block from what the target would draw there.

A block of every text is taken with some of its slots undecided (`training/places.py`). The target,
which is frozen, is asked once, and every undecided slot takes a draw of its law. Noise contrastive
estimation with one draw per text (arXiv:2410.21357 section 4.2), averaged over the texts:

    -log sigmoid(-E(text)) - log sigmoid(E(draw))

Where this is least, exp(-E) is how much likelier the text is among texts than among draws. A draw
that is the text itself teaches nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.heads import edlm_nce
from jaxdecode.models import extra
from jaxdecode.training import denoising, losses, places, replays
from jaxdecode.training.objective import Objective, Start, heads_only


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        block_length: slots of a block; of a target with blocks of its own theirs.
    """

    block_length: int = 32

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("block_length", self.block_length, low=1)


def make(config: Config, models: Models) -> Objective:
    """The objective of an energy for a frozen target.

    Raises:
        InputError: the target does not fill slots.
    """
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    asked, embed = denoising.own_setting(model), model.target.embed
    assert embed is not None
    size = asked.denoiser.block or config.block_length

    def init(key, weights, texts):
        del texts
        return Start(edlm_nce.init(shape, model.config, key, weights.target))

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen = jax.lax.stop_gradient(target_params)
        laid = replays.blocks(asked, batch, size)
        where, draw = jax.random.split(key)
        place = places.draw(asked, batch, laid, where)
        states = denoising.states(asked, frozen, batch, place.open | place.behind)
        drawn, _ = denoising.draws(asked, frozen, states, draw)
        program = extra.windows(batch.positions, jnp.where(place.inside, laid.number, -1))

        def energy(tokens: Int[Array, "B T"]) -> Float[Array, "B T"]:
            embedded = embed(frozen, tokens)
            parts = edlm_nce.parts(model, params, states, embedded, program)
            return block_means(parts, place.inside, laid)

        right = energy(batch.tokens)
        wrong = energy(jnp.where(place.open, drawn, batch.tokens))
        weight = each_once(place, laid)
        metrics = {
            "energy.text": losses.weighted_mean(right, weight),
            "energy.draw": losses.weighted_mean(wrong, weight),
            "accuracy": losses.weighted_mean((right < wrong) + 0.5 * (right == wrong), weight),
        }
        error = jax.nn.softplus(right) + jax.nn.softplus(-wrong)
        return losses.weighted_mean(error, weight), metrics

    return Objective(init=init, loss=loss, export=heads_only)


def block_means(
    values: Float[Array, "B T"], inside: Bool[Array, "B T"], laid: replays.Blocks
) -> Float[Array, "B T"]:
    """The mean over the slots of a block, given to each of them."""
    totals = replays.per_block(jax.ops.segment_sum, jnp.where(inside, values, 0.0), laid.number)
    return totals / jnp.maximum(_counts(inside, laid), 1.0)


def each_once(place: places.Place, laid: replays.Blocks) -> Float[Array, "B T"]:
    """Weights of tokens with which every block that has an undecided slot counts as 1."""
    some = replays.per_block(jax.ops.segment_max, place.open.astype(jnp.int32), laid.number) > 0
    return (place.inside & some) / jnp.maximum(_counts(place.inside, laid), 1.0)


def _counts(inside: Array, laid: replays.Blocks) -> Float[Array, "B T"]:
    return replays.per_block(jax.ops.segment_sum, inside.astype(jnp.float32), laid.number)
