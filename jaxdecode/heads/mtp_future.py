"""Mask tokens, adapters for them, and a sampler of their guesses (arXiv:2507.11851).

Mask tokens enter the target as rows of their own, and adapters change the target for these rows
only. Their final states know of the tokens ahead, but not of each other's choices: the sampler adds
what the token chosen before says to each, and the target's head reads the sum.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.heads.ppd import embeddings
from jaxdecode.models import lora
from jaxdecode.models.config import ModelConfig
from jaxdecode.models.layers import RMSNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        num_probes: mask tokens, and tokens that are guessed beyond the next.
        rank: of the adapters.
    """

    num_probes: int = 4
    rank: int = 16

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_probes", self.num_probes, low=1, high=64)
        checks.integer("rank", self.rank, low=1, high=1024)


class Sampler(nn.Module):
    """A mask's state, given the embedding of the token before; changes nothing at first."""

    @nn.compact
    def __call__(self, before: Float[Array, "*B D"], state: Float[Array, "*B D"]):
        width = state.shape[-1]
        wide = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        first = self.param("in.kernel", wide, (2 * width, width))
        second = self.param("out.kernel", nn.initializers.zeros, (width, width))
        both = jnp.concatenate([before, state], axis=-1).astype(first.dtype)
        x = RMSNorm(1e-5, 0.0, name="norm")(nn.silu(both @ first))
        return state + (x @ second).astype(state.dtype)


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training: masks that are random tokens, and parts that change nothing."""
    keys = jax.random.split(key, 3)
    row = jnp.zeros((1, config.hidden_size))
    return {
        "embedding": embeddings(config, keys[0], target, shape.num_probes),
        "lora": lora.init(keys[1], target, shape.rank),
        "sampler": Sampler().init(keys[2], row, row)["params"],
    }


def sampled(
    params: dict[str, Any], before: Float[Array, "*B D"], state: Float[Array, "*B D"]
) -> Float[Array, "*B D"]:
    """What the target's head reads of a mask's state, given the token before."""
    found: Any = Sampler().apply({"params": params["sampler"]}, before, state)
    return found
