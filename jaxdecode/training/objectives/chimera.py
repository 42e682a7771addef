"""Chimera: the encoders and the head learn every token they guess; the target is frozen.

All places of a text draft at once, in one pass per head: pass s adds, behind each place, the
feature of the token s places on; it sees the target's states up to the place, and at its place the
features of passes 1 to s: what a node s levels deep sees in decoding.

Loss: sum over heads k (from 0) of decay^(k+1) times CE with the token k + 2 places on, times
`token_weight`, and the cross-entropy with the target's own law of it, times `law_weight`
(arXiv:2402.15758; the released code trains on the tokens alone).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode.core.protocols import Models
from jaxdecode.heads import chimera
from jaxdecode.models import extra
from jaxdecode.training import features as aligned
from jaxdecode.training.objective import Batch, Objective, Start, heads_only
from jaxdecode.training.objectives import hydra
from jaxdecode.training.objectives.eagle3 import sees_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(hydra.Learning):
    """Settings.

    Attributes:
        decay: weight of each head relative to the one before.
        token_weight: weight of the texts' tokens.
        law_weight: weight of the target's law.
    """

    decay: float = 1.0


def make(config: Config, models: Models) -> Objective:
    """The objective of encoders and a head on a frozen target."""
    assert models.heads is not None
    shape, model = models.heads.shape, models.target
    parts = chimera.bind(shape, model.config, model.kv_dtype)

    def init(key, weights, texts):
        del texts
        return Start(chimera.init(shape, model.config, key, weights.target))

    def read(params, frozen, batch, hidden):
        outs = unrolled(parts, params, frozen, batch, hidden, model, shape.num_heads)
        return jnp.stack([hidden, *outs], axis=2)

    def step(params, head, told, row, target_logits):
        del row
        return parts.scores(params, told[:, 0], told[:, head + 1], target_logits), told

    loss = hydra.loss_of(config, models, read, step)
    return Objective(init=init, loss=loss, export=heads_only, features=aligned.states(model.target))


def unrolled(
    parts: chimera.Parts,
    params: Any,
    frozen: Any,
    batch: Batch,
    hidden: Float[Array, "B T D"],
    model: Any,
    num_heads: int,
) -> list[Float[Array, "B T D"]]:
    """What the layer says of the drafts of every pass."""
    layer, sees = parts.layer, sees_of(batch.segments)

    def attend(x, positions, above):
        read = parts.normed(params, x)
        return extra.attend_down(
            layer.config, layer.kv_dtype, params["attn"], read, positions, sees, above
        )

    above, outs = [attend(hidden, batch.positions, ())[1]], []
    trigrams = _trigrams(batch)
    embedded = model.target.embed(frozen, trigrams.reshape(len(trigrams), -1))
    features = parts.trigrams(params, embedded.reshape(*trigrams.shape, -1))
    for s in range(1, num_heads + 1):
        x = jnp.pad(features[:, s:], ((0, 0), (0, s), (0, 0)))
        mixed, own = attend(x, batch.positions + s, above)
        above.append(own)
        outs.append(layer.after(params, x + mixed))
    return outs


def _trigrams(batch: Batch) -> Int[Array, "B T 3"]:
    """Each token behind the two before it; a text's first token stands for what is missing."""
    place = jnp.arange(batch.tokens.shape[1])
    steps = jnp.minimum(batch.positions[..., None], jnp.array([2, 1, 0]))
    slots = place[:, None] - steps
    return jnp.take_along_axis(batch.tokens[..., None], slots, axis=1)
