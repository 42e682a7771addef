"""Judge head: one linear layer on the target's state after a token says whether it was a mistake.

The state has read the token itself: it knows what the states before could not (arXiv:2501.19309).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes: the target's width decides."""


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training: undecided about every token."""
    del shape, target
    params: Any = _layer().init(key, jnp.zeros((1, config.hidden_size)))["params"]
    return params


def scores(params: dict[str, Any], hidden: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """How much the head trusts the tokens that these final states have read last.

    float32 log-odds: positive where a token is more likely right than not.
    """
    found: Any = _layer().apply({"params": params}, hidden)
    return found[..., 0].astype(jnp.float32)


def _layer() -> nn.Dense:
    return nn.Dense(1, kernel_init=nn.initializers.zeros, dtype=jnp.float32)
