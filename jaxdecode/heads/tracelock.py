"""Controller of TraceLock: which candidates of a block will stand, from what the target shows.

Every slot has six features; a layer reads them, a second one also the mean over the undecided
slots, from which a threshold comes too. A candidate is trusted by how far its score is above the
threshold. Nothing depends on the length of a block (after arXiv:2605.24697, whose controller is a
transformer over hidden states).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.models.config import ModelConfig
from jaxdecode.sampling import confidence

NUM_FEATURES = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        num_hidden: width of the layers.
    """

    num_hidden: int = 64

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_hidden", self.num_hidden, low=1, high=4096)


class Controller(nn.Module):
    """From features to a score per slot and a threshold per block, in float32."""

    width: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "*B W F"], open: Bool[Array, "*B W"]
    ) -> tuple[Float[Array, "*B W"], Float[Array, "*B"]]:
        def last(name: str) -> nn.Dense:
            zeros = nn.initializers.zeros
            return nn.Dense(1, kernel_init=zeros, dtype=jnp.float32, name=name)

        hidden = nn.silu(nn.Dense(self.width, dtype=jnp.float32, name="slot")(features))
        count = jnp.maximum(open.sum(-1, keepdims=True), 1)
        block = jnp.where(open[..., None], hidden, 0.0).sum(-2) / count
        both = jnp.concatenate([hidden, jnp.broadcast_to(block[..., None, :], hidden.shape)], -1)
        mixed = nn.silu(nn.Dense(self.width, dtype=jnp.float32, name="both")(both))
        return last("score")(mixed)[..., 0], last("threshold")(block)[..., 0]


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training; the target decides none of their sizes."""
    del config, target
    empty = jnp.zeros((1, NUM_FEATURES))
    params: Any = Controller(shape.num_hidden).init(key, empty, jnp.ones(1, bool))["params"]
    return params


def features(
    open: Bool[Array, "*B W"],
    size: Int[Array, "*B"],
    probability: Float[Array, "*B W"],
    entropy: Float[Array, "*B W"],
    margin: Float[Array, "*B W"],
) -> Float[Array, "*B W F"]:
    """What the controller reads of each undecided slot; meaningless at others.

    Probability of the candidate, its rank among the undecided ones, entropy of the target's law in
    nats, margin of its two likeliest tokens, the share of the block that is decided (that of the
    steps, where each decides one slot) and the distance to the block's first undecided slot.

    Args:
        open: undecided slots of a block.
        size: how many there were before its first step.
        probability: of the candidates.
        entropy: of the target's laws.
        margin: between the two likeliest tokens.
    """
    num_slots = open.shape[-1]
    left = open.sum(-1, keepdims=True)
    rank = confidence.rank(probability, open) / jnp.maximum(left, 1)
    decided = 1 - left / jnp.maximum(size[..., None], 1)
    away = (jnp.arange(num_slots) - jnp.argmax(open, axis=-1)[..., None]) / num_slots
    columns = (probability, rank, entropy, margin, decided, away)
    same = [jnp.broadcast_to(column, open.shape).astype(jnp.float32) for column in columns]
    return jnp.stack(same, axis=-1)


def trust(
    shape: Shape,
    params: dict[str, Any],
    features: Float[Array, "*B W F"],
    open: Bool[Array, "*B W"],
) -> tuple[Float[Array, "*B W"], Float[Array, "*B"]]:
    """float32 log-odds that each candidate stands, and the threshold they are taken from."""
    found: Any = Controller(shape.num_hidden).apply({"params": params}, features, open)
    score, threshold = found
    return score - threshold[..., None], threshold
