"""A controller learns which candidates of a block the plain sampler would have in the end.

Traces: the target fills its own answers as `llada` does, a block's surest slot in each pass.
Every undecided slot of every pass is a lesson: whether its likeliest token is the answer's. With a
trust g, the controller's score less its threshold th, the loss is (after arXiv:2605.24697)

    mean of w * cross-entropy of sigmoid(g) with right or wrong  +  decay * mean of th^2

with w = `wrong` for wrong ones; right ones weigh less the more undecided slots stand before them:
1 - far * rank / (n - 1) of n, by rank from 0.

The target is frozen, and `cache: true` replays each text once: one pass per token. The answers must
be greedy ones of `llada` with blocks of `block_length` slots.

Differs: no hidden states (`heads/tracelock.py`); end tokens weigh like others, for a text has one.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.heads import tracelock
from jaxdecode.training import denoising, losses, replays
from jaxdecode.training.objective import Objective, Start, heads_only


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        block_length: slots of a block; of a target with blocks of its own theirs.
        wrong: weight of candidates that are wrong.
        far: weight that a right candidate loses at the far end of the undecided slots.
        decay: weight of the squared threshold.
    """

    block_length: int = 32
    wrong: float = 2.0
    far: float = 0.5
    decay: float = 0.001

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("block_length", self.block_length, low=1)
        checks.number("wrong", self.wrong, "above 0", lambda x: x > 0)
        checks.number("far", self.far, "a number in [0, 1]", lambda x: 0 <= x <= 1)
        checks.number("decay", self.decay, "at least 0", lambda x: x >= 0)


def make(config: Config, models: Models) -> Objective:
    """The objective of a controller for a frozen target.

    Raises:
        InputError: the target does not fill slots.
    """
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    asked = denoising.own_setting(model)
    size = asked.denoiser.block or config.block_length

    def init(key, weights, texts):
        del texts
        return Start(tracelock.init(shape, model.config, key, weights.target))

    def features(target_params, batch):
        frozen = jax.lax.stop_gradient(target_params)
        return replays.replay(asked, frozen, batch, size, replays.surest)

    def loss(params, target_params, batch, key, moment):
        del moment
        known = batch.features is not None
        trace = batch.features if known else features(target_params, batch)
        laid = replays.blocks(asked, batch, size)
        seen, _, passes = replays.lessons(trace, laid, size, key)
        odds, threshold = tracelock.trust(shape, params, inputs(seen), seen.open)
        weight = weights_of(config, seen.open, seen.right)
        error = jax.nn.softplus(jnp.where(seen.right, -odds, odds))
        held = losses.weighted_mean(threshold**2, passes.astype(jnp.float32))
        open = seen.open.astype(jnp.float32)
        metrics = {
            "accuracy": losses.weighted_mean((odds > 0) == seen.right, open),
            "right": losses.weighted_mean(seen.right, open),
            "threshold": losses.weighted_mean(threshold, passes.astype(jnp.float32)),
        }
        return losses.weighted_mean(error, weight) + config.decay * held, metrics

    return Objective(init=init, loss=loss, export=heads_only, features=features)


def inputs(seen: replays.Trace) -> Float[Array, "B G S W F"]:
    """What the controller reads in every pass of every block."""
    size = jnp.broadcast_to(seen.open[:, :, :1].sum(-1), seen.open.shape[:-1])
    return tracelock.features(seen.open, size, seen.confidence, seen.entropy, seen.margin)


def weights_of(
    config: Config, open: Bool[Array, "*B W"], right: Bool[Array, "*B W"]
) -> Float[Array, "*B W"]:
    """Weights of the undecided slots of a block; 0 elsewhere."""
    rank = jnp.cumsum(open, axis=-1) - 1
    last = jnp.maximum(open.sum(-1, keepdims=True) - 1, 1)
    return jnp.where(right, 1 - config.far * rank / last, config.wrong) * open
