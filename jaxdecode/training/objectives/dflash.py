"""Blocks that are guessed at once, by cross-entropy; the target is frozen.

Loss: mean over the guessed places j (from 1) of blocks at random places of the cross-entropy, with
weight exp(-(j - 1) / gamma): a wrong guess makes all behind it worthless (arXiv:2602.06036).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.core import ops
from jaxdecode.core.protocols import Models
from jaxdecode.heads import dflash
from jaxdecode.training import blocks, losses
from jaxdecode.training.objective import Objective, Start, heads_only, program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        gamma: places over which a guess loses weight; 7 is for blocks of 16.
        num_places: blocks of a text in one step; None puts one at every place.
    """

    gamma: float = 7.0
    num_places: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("gamma", self.gamma, "above 0", lambda x: x > 0)
        if self.num_places is not None:
            checks.integer("num_places", self.num_places, low=1)


def make(config: Config, models: Models) -> Objective:
    """The objective of a block drafter on a frozen target."""
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    target, own = model.target, dflash.bind(shape, model.config, model.kv_dtype)
    taps = tuple(f"layer.{i}" for i in dflash.layers_of(shape, model.config.num_layers))
    assert target.embed is not None
    embed = target.embed

    def init(key, weights, texts):
        del texts
        return Start(dflash.init(shape, model.config, key, weights.target))

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen = jax.lax.stop_gradient(target_params)
        laid = blocks.lay(batch, key, block=shape.block, num_places=config.num_places)
        seen = target.forward(frozen, batch.tokens, program(batch), None, taps).taps
        context = own.context(params, [seen[name] for name in taps])
        first = ops.taken(batch.tokens, laid.places)
        x = dflash.enter(params, embed(frozen, first), num_masks=shape.block - 1)
        flat = x.reshape(len(x), -1, x.shape[-1])
        states = own.states(params, flat, laid.program, context=context).reshape(x.shape)

        def per_row(hidden, wanted):
            scores = target.logits(frozen, hidden)
            return losses.cross_entropy(scores, wanted), scores.argmax(-1) == wanted

        errors, hits = losses.over_tokens(per_row, states[:, :, 1:], laid.wanted)
        rates = losses.per_head(hits, laid.weight)
        metrics = {f"accuracy.{j}": rate for j, rate in enumerate(rates)}
        weight = laid.weight * decay(shape.block - 1, config.gamma)
        return losses.weighted_mean(errors, weight), metrics

    return Objective(init=init, loss=loss, export=heads_only)


def decay(num: int, gamma: float) -> Float[Array, "n"]:
    """Weights of the guessed places."""
    return jnp.exp(-jnp.arange(num) / gamma)
