"""Mask tokens, their adapters and the sampler; tokens are scored by the target as it is.

Loss: cross-entropy of the masks' own scores, and of the sampler's, which reads the true token
before; and the squared distance of each mask's state from that of the token at its place, which
sees everything up to there (arXiv:2507.11851).
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.heads import mtp_future
from jaxdecode.training import losses, probed
from jaxdecode.training.objective import Objective, Start, heads_only
from jaxdecode.trees import probes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        consistency: weight of the distance between states.
        num_places: places of a text that are probed in one step; None probes all.
    """

    consistency: float = 1.0
    num_places: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("consistency", self.consistency, "at least 0", lambda x: x >= 0)
        if self.num_places is not None:
            checks.integer("num_places", self.num_places, low=1)


def make(config: Config, models: Models) -> Objective:
    """The objective of masks in a frozen target."""
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    target = model.target
    assert target.embed is not None
    embed = target.embed

    def init(key, weights, texts):
        del texts
        return Start(mtp_future.init(shape, model.config, key, weights.target))

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen = jax.lax.stop_gradient(target_params)
        laid = probed.lay(batch, key, num_probes=shape.num_probes, num_places=config.num_places)
        adapted, x = probes.enter(target, frozen, params, laid.tokens, laid.probe)
        texts, masks = laid.split(target.forward(adapted, x, laid.program, None).hidden)
        before = laid.later(batch.tokens[..., None])[..., 0]

        def per_mask(state, anchor, before, wanted):
            ordered = mtp_future.sampled(params, embed(frozen, before), state)
            plain, chosen = (target.logits(frozen, rows) for rows in (state, ordered))
            return {
                "masks": losses.cross_entropy(plain, wanted),
                "sampler": losses.cross_entropy(chosen, wanted),
                "consistency": distance(state, anchor),
                "accuracy": (chosen.argmax(-1) == wanted).astype(jnp.float32),
            }

        anchor = jax.lax.stop_gradient(laid.later(texts))
        found = losses.over_tokens(per_mask, masks, anchor, before, laid.wanted)
        means = {name: losses.weighted_mean(x, laid.weight) for name, x in found.items()}
        total = means["masks"] + means["sampler"] + config.consistency * means["consistency"]
        rates = losses.per_head(found["accuracy"], laid.weight)
        return total, means | {f"accuracy.{j}": rate for j, rate in enumerate(rates)}

    return Objective(init=init, loss=loss, export=heads_only)


def distance(state, anchor):
    """Mean squared difference of two states."""
    return jnp.square(state.astype(jnp.float32) - anchor.astype(jnp.float32)).mean(-1)
