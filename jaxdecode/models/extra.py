"""Layers beside a model, of its kind: rows of their own, keys and values of their own."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode.core.attention import XLA, View
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Rows
from jaxdecode.models import rope
from jaxdecode.models.config import ModelConfig
from jaxdecode.models.layers import Angles, Attention, Block, NewRows, RMSNorm


def like(config: ModelConfig, num_layers: int = 1) -> ModelConfig:
    """The config of layers beside a model: they attend to all positions."""
    return dataclasses.replace(
        config,
        num_layers=num_layers,
        layer_windows=(0,) * num_layers,
        local_rope=None,
        post_norms=False,
    )


def angles(config: ModelConfig, positions: Int[Array, "B T"]) -> Angles:
    """Rotations of rows."""
    return rope.angles(config.rope, config.head_dim, positions)


def first_row(config: ModelConfig) -> tuple[Array, MaskProgram]:
    """A row of zeros and its mask: what parameters are initialised with."""
    place = jnp.zeros((1, 1), jnp.int32)
    program = MaskProgram(cached=place[0], positions=place, num_new=place[0] + 1)
    return jnp.zeros((1, 1, config.hidden_size)), program


def init_block(config: ModelConfig, key: Array) -> Any:
    """Parameters of a whole layer."""
    x, program = first_row(config)
    block = Block(config, jnp.float32)
    return block.init(key, x, angles(config, program.positions), program, None, 0)["params"]


def block(
    config: ModelConfig,
    kv_dtype: Any,
    params: Any,
    x: Float[Array, "B T D"],
    program: MaskProgram,
    cached: Rows | None,
) -> Float[Array, "B T D"]:
    """Output of a whole layer; `cached` has one layer."""
    view = None if cached is None else View(cached[0][0], cached[1][0])
    turned = angles(config, program.positions)
    out: Any = Block(config, kv_dtype).apply({"params": params}, x, turned, program, view, 0)
    return out[0] + out[1]


def keys_and_values(
    config: ModelConfig,
    kv_dtype: Any,
    params: Any,
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
) -> NewRows:
    """Keys and values that an attention makes of rows, in the form of a layer's new rows.

    Args:
        config: of the layer.
        kv_dtype: their dtype.
        params: of the attention.
        x: what enters it, normalised.
        positions: of the rows.
    """
    # Only the projections are used: what is attended to here is of no interest, nor computed.
    none = jnp.zeros_like(positions[:, 0])
    program = MaskProgram(cached=none, positions=positions, num_new=none)
    attend = Attention(config, kv_dtype, XLA)
    rows: Any = attend.apply({"params": params}, x, angles(config, positions), program, None, 0)
    return rows[1]


class Pairs(NamedTuple):
    """Rows that join a state with the token behind it, in front of one layer; hashable.

    Parameters are those of the whole: `enter` joins, `layer` begins with a norm and an attention.

    Attributes:
        config: of the layer.
        kv_dtype: dtype of its keys and values.
    """

    config: ModelConfig
    kv_dtype: Any

    def enter(
        self, params: Any, embedded: Float[Array, "*B D"], features: Float[Array, "*B D"]
    ) -> Float[Array, "*B D"]:
        """Rows, from embeddings and states."""
        own = params["enter"]
        both = jnp.concatenate([embedded, features.astype(embedded.dtype)], axis=-1)
        return (both.astype(jnp.float32) @ own["kernel"] + own["bias"]).astype(embedded.dtype)

    def rows(self, params: Any, x: Float[Array, "B T D"], positions: Int[Array, "B T"]) -> Rows:
        """Their keys and values, as a cache of one layer takes them."""
        layer, norm = params["layer"], RMSNorm(self.config.norm_eps, self.config.norm_offset)
        normed: Any = norm.apply({"params": layer["attn_norm"]}, x)
        made = keys_and_values(self.config, self.kv_dtype, layer["attn"], normed, positions)
        return (made[0],), (made[1],)


def init_pair(width: int, key: Array) -> Any:
    """Parameters that join."""
    kernel = jax.random.normal(key, (2 * width, width)) * (2 * width) ** -0.5
    return {"kernel": kernel, "bias": jnp.zeros(width)}
