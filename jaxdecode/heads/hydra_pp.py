"""Hydra++ heads: Hydra heads of more blocks, whose state has seen the text (arXiv:2402.05109).

In front of the heads stands one layer of the target's kind, the prefix layer. It attends over the
target's last hidden states of all tokens, and the heads read what it makes of the last of them.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Rows
from jaxdecode.heads import hydra
from jaxdecode.heads.hydra import logits
from jaxdecode.models import extra
from jaxdecode.models.config import ModelConfig
from jaxdecode.models.layers import RMSNorm

__all__ = ["Prefix", "Shape", "bind", "init", "init_prefix", "logits"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape(hydra.Shape):
    """Sizes.

    Attributes:
        num_layers: residual blocks of a head.
    """

    num_layers: int = 4


class Prefix(NamedTuple):
    """The prefix layer's functions; hashable. `params` are those of the heads.

    Attributes:
        config: of the layer.
        kv_dtype: dtype of its keys and values.
    """

    config: ModelConfig
    kv_dtype: Any

    def states(
        self,
        params: Any,
        hidden: Float[Array, "B T D"],
        program: MaskProgram,
        cached: Rows | None = None,
    ) -> Float[Array, "B T D"]:
        """What the heads read, from the target's states."""
        own = params["prefix"]
        x = extra.block(self.config, self.kv_dtype, own["layer"], hidden, program, cached)
        norm = RMSNorm(self.config.norm_eps, self.config.norm_offset)
        out: Any = norm.apply({"params": own["norm"]}, x)
        return out

    def rows(
        self, params: Any, hidden: Float[Array, "B T D"], positions: Int[Array, "B T"]
    ) -> Rows:
        """Keys and values of the target's states, as a cache of one layer takes them."""
        return extra.Pairs(self.config, self.kv_dtype).rows(params["prefix"], hidden, positions)


def bind(config: ModelConfig, kv_dtype: Any) -> Prefix:
    """The prefix layer of a target."""
    return Prefix(extra.like(config), kv_dtype)


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training."""
    return hydra.init(shape, config, key, target) | {"prefix": init_prefix(config, key)}


def init_prefix(config: ModelConfig, key: Array) -> dict[str, Any]:
    """Parameters of a prefix layer that adds nothing to the states."""
    layer = extra.init_block(extra.like(config), key)
    for part, name in (("attn", "o"), ("mlp", "down")):
        layer[part][name] = jax.tree.map(jnp.zeros_like, layer[part][name])
    return {"layer": layer, "norm": {"scale": jnp.full(config.hidden_size, 1 - config.norm_offset)}}
