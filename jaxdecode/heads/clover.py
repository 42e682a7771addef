"""Clover heads: a state that has seen the text is handed from head to head (arXiv:2405.00263).

In front stands a layer of the target's kind over the target's states, as Hydra++ has it. Head i
(from 0) asks the embedding of the token before its guess, by an attention that has this one key
only and so takes its value whole; the state with the answer in it, through a residual block, is
what the target's head reads and what the next head goes on from.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.heads import hydra_pp
from jaxdecode.heads.hydra_pp import bind
from jaxdecode.models import residual
from jaxdecode.models.config import ModelConfig

__all__ = ["Shape", "bind", "init", "step"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        num_heads: tokens that are guessed ahead.
    """

    num_heads: int = 4

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_heads", self.num_heads, low=1, high=64)


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training: a layer and answers that add nothing."""
    del target
    width, keys = config.hidden_size, jax.random.split(key, shape.num_heads + 1)
    params: dict[str, Any] = {"prefix": hydra_pp.init_prefix(config, keys[0])}
    for i, own in enumerate(keys[1:]):
        value = jax.random.normal(own, (width, width)) * width**-0.5
        params[f"head.{i}"] = {
            "value": {"kernel": value, "bias": jnp.zeros(width)},
            "out": {"kernel": jnp.zeros((width, width)), "bias": jnp.zeros(width)},
            "block": residual.init(width),
        }
    return params


def step(
    params: dict[str, Any], head: int, state: Float[Array, "*B D"], embedded: Float[Array, "*B D"]
) -> Float[Array, "*B D"]:
    """The state of a head, from that before it and the token before its guess; float32."""
    own = params[f"head.{head}"]
    answer = residual.linear(own["out"], residual.linear(own["value"], embedded))
    return residual.apply(own["block"], state.astype(jnp.float32) + answer)
