"""Filter of Learning to Parallel: from how sure the target is of a block to which slots are right.

Two layers read the probabilities of all slots of a block at once, decided ones too; the paper's are
as wide as its block, 32 (arXiv:2509.25188 section 4). An untrained filter is undecided about every
slot.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        block_length: slots of the blocks that the filter is for; it fits no others.
        num_hidden: width between the layers.
    """

    block_length: int = 32
    num_hidden: int = 32

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("block_length", self.block_length, low=1, high=4096)
        checks.integer("num_hidden", self.num_hidden, low=1, high=4096)


class Filter(nn.Module):
    """The two layers, in float32."""

    shape: Shape

    @nn.compact
    def __call__(self, confidence: Float[Array, "*B W"]) -> Float[Array, "*B W"]:
        first = nn.Dense(self.shape.num_hidden, dtype=jnp.float32)
        zeros = nn.initializers.zeros
        last = nn.Dense(self.shape.block_length, kernel_init=zeros, dtype=jnp.float32)
        return last(nn.relu(first(confidence)))


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training; the target decides none of their sizes."""
    del config, target
    params: Any = Filter(shape).init(key, jnp.zeros((1, shape.block_length)))["params"]
    return params


def scores(
    shape: Shape, params: dict[str, Any], confidence: Float[Array, "*B W"]
) -> Float[Array, "*B W"]:
    """float32 log-odds that a slot's candidate is what the text will have there.

    Args:
        shape: sizes.
        params: of the filter.
        confidence: the target's probability of what each slot holds: its candidate, or the token
            it was decided on; 1 past the text's end.
    """
    found: Any = Filter(shape).apply({"params": params}, confidence)
    return found
