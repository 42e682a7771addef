"""A layer learns what the target would say after more slots are filled, without asking it again.

A block of every text is taken with some of its slots undecided (`training/places.py`), and the
target is asked once. Then num_joint - 1 times a slot that comes first in the order takes a draw of
the target's law, the target is asked again, and the layer has to say the same from the states of
the first pass and the tokens drawn since. Loss: the divergence KL(target || layer) over the slots
that are still undecided, over all these turns (after arXiv:2509.22738; which trajectories and
slots count is ours).

`independent` is what the loss would be without the layer: the laws of the first pass. The target is
frozen. The texts are best the target's own answers; what is drawn on the way is its own anyway.
Cost: num_joint passes of the target over a batch, of which none is differentiated.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.heads import adjust_joint
from jaxdecode.models import extra
from jaxdecode.training import denoising, losses, places, replays
from jaxdecode.training.objective import Batch, Objective, Start, heads_only

Turns = Literal["probability", "random", "left_to_right"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        block_length: slots of a block; of a target with blocks of its own theirs.
        num_joint: slots that decoding fills per pass.
        order: which slots come first: those of the largest "probability" of their draw, "random"
            ones, or "left_to_right".
    """

    block_length: int = 32
    num_joint: int = 4
    order: Turns = "probability"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("block_length", self.block_length, low=1)
        checks.integer("num_joint", self.num_joint, low=2, high=64)
        checks.choice("order", self.order, get_args(Turns))


def make(config: Config, models: Models) -> Objective:
    """The objective of a layer for a frozen target.

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
        return Start(adjust_joint.init(shape, model.config, key, weights.target))

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen = jax.lax.stop_gradient(target_params)
        laid = replays.blocks(asked, batch, size)
        where, *turns = jax.random.split(key, config.num_joint)
        place = places.draw(asked, batch, laid, where)
        program = extra.windows(batch.positions, jnp.where(place.inside, laid.number, -1))

        def ask(batch: Batch, open: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
            return denoising.states(asked, frozen, batch, open | place.behind)

        first = ask(batch, place.open)

        def turn(carry: tuple[Any, ...], key: Array) -> tuple[Any, Any]:
            batch, open, states = carry
            batch, open = fill(asked, frozen, config.order, batch, open, laid, states, key)
            states = ask(batch, open)
            held = jnp.where(open, asked.denoiser.mask_token, batch.tokens)
            embedded = embed(frozen, held)
            ours = adjust_joint.adjusted(model, params, first, embedded, program)
            found = [divergences(asked, frozen, states, guess, open) for guess in (ours, first)]
            return (batch, open, states), (*found, open)

        _, (ours, plain, counts) = jax.lax.scan(turn, (batch, place.open, first), jnp.stack(turns))
        weight = counts.astype(jnp.float32)
        metrics = {
            "independent": losses.weighted_mean(jax.lax.stop_gradient(plain), weight),
            "open": counts[0].sum() / jnp.maximum((batch.weight * place.inside).sum(), 1.0),
        }
        return losses.weighted_mean(ours, weight), metrics

    return Objective(init=init, loss=loss, export=heads_only)


def fill(
    asked: denoising.Setting,
    params: Any,
    order: Turns,
    batch: Batch,
    open: Bool[Array, "B T"],
    laid: replays.Blocks,
    states: Float[Array, "B T D"],
    key: Array,
) -> tuple[Batch, Bool[Array, "B T"]]:
    """The texts after one undecided slot of every block took a draw, and what is undecided then.

    Args:
        asked: how the target is asked.
        params: its parameters.
        order: which slot comes first.
        batch: texts.
        open: undecided slots.
        laid: blocks.
        states: the target's, as the texts are.
        key: of the draws.
    """
    drawn, probability = denoising.draws(asked, params, states, key)
    score = {
        "probability": lambda: probability,
        "random": lambda: jax.random.uniform(jax.random.fold_in(key, 1), open.shape),
        "left_to_right": lambda: 1 / (1.0 + laid.slot),
    }[order]()
    now = replays.foremost(score, open, laid)
    batch = dataclasses.replace(batch, tokens=jnp.where(now, drawn, batch.tokens))
    return batch, open & ~now


def divergences(
    asked: denoising.Setting,
    params: Any,
    states: Float[Array, "B T D"],
    guess: Float[Array, "B T D"],
    open: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """KL of the target's law from the guessed one, in nats; 0 where nothing is undecided."""

    def per_token(states, guess, open):
        law = jax.nn.softmax(denoising.scores(asked, params, states))
        return jnp.where(open, losses.divergence(denoising.scores(asked, params, guess), law), 0.0)

    return losses.over_tokens(per_token, states, guess, open)
