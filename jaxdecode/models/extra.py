"""Layers beside a model, of its kind: rows of their own, keys and values of their own."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core import ops
from jaxdecode.core.attention import XLA, View
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Rows
from jaxdecode.models import rope
from jaxdecode.models.config import ModelConfig
from jaxdecode.models.layers import (
    Angles,
    Attention,
    Block,
    Linear,
    NewRows,
    OutputLinear,
    RMSNorm,
    rotate,
)

# Places whose scores `attend_down` holds at once.
_TILE = 128


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


def windows(positions: Int[Array, "B T"], group: Int[Array, "B T"]) -> MaskProgram:
    """Slots that see those of their own window, in both directions.

    Args:
        positions: of the slots in their text.
        group: windows they belong to.
    """
    num_rows, width = positions.shape
    return MaskProgram(
        cached=jnp.zeros(num_rows, jnp.int32),
        positions=positions,
        num_new=jnp.full(num_rows, width, jnp.int32),
        rule="bidirectional",
        segments=group,
    )


def unit(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Rows of root mean square 1, as states have: embeddings are often much smaller."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + 1e-12)
    return (wide * scale).astype(x.dtype)


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


def attend_down(
    config: ModelConfig,
    dtype: Any,
    params: Any,
    read: Float[Array, "B T I"],
    positions: Int[Array, "B T"],
    sees: Bool[Array, "B P S"],
    above: Sequence[tuple[Array, Array]],
    *,
    beside: Float[Array, "B T K G d"] | None = None,
    places: Int[Array, "B P"] | None = None,
) -> tuple[Float[Array, "B P D"], tuple[Array, Array]]:
    """Attention of rows that go on from places of a text, one row deeper at every call.

    A row sees the S rows of the first call as `sees` says, and at its own place the rows of every
    later call and itself. Scores are P x S however deep it is, and those of a few places are held
    at once.

    Args:
        config: of the layer.
        dtype: of keys, values and products.
        params: of the attention.
        read: what it reads.
        positions: of the rows.
        sees: which rows of the first call each row sees.
        above: keys and values of the earlier calls; empty in the first.
        beside: what else queries, keys and values are made from, multiplied already.
        places: rows of the first call that see, and that later calls go on from; None for all.

    Returns:
        What it adds, and keys and values `[B, T, K, d]` of the rows that were read.
    """
    c = config
    features = (c.num_kv_heads, c.group_size + 2, c.head_dim)
    qkv: Any = Linear(features, c.qkv_bias, dtype).apply({"params": params["qkv"]}, read)
    qkv = qkv if beside is None else qkv + beside
    query, key, value = qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]
    if c.qk_norm:
        norm: Any = RMSNorm(c.norm_eps, c.norm_offset)
        query = norm.apply({"params": params["q_norm"]}, query)
        key = norm.apply({"params": params["k_norm"]}, key)
    turned = angles(config, positions)
    query = (rotate(query, *turned) * c.query_scale).astype(dtype)
    query = query if places is None else ops.taken(query, places)
    own = rotate(key, *turned).astype(dtype), value.astype(dtype)
    first, *later = [*above, own]
    # Places that are padding see all.
    attend = functools.partial(_attend_down, *first)
    mixed = ops.over_places(attend, _TILE, query, ~sees, later)
    flat = mixed.reshape(*mixed.shape[:2], -1)
    out: Any = OutputLinear(c.hidden_size, c.o_bias, dtype).apply({"params": params["o"]}, flat)
    return out.astype(read.dtype), own


def _attend_down(
    key: Float[Array, "B T K d"],
    value: Float[Array, "B T K d"],
    query: Float[Array, "B t K G d"],
    hidden: Bool[Array, "B t T"],
    later: Sequence[tuple[Float[Array, "B t K d"], Float[Array, "B t K d"]]],
) -> Float[Array, "B t K G d"]:
    """Attention of a few places over the first rows, and at each place over its later ones."""
    wide = jnp.einsum("btkgd,bskd->bkgts", query, key, preferred_element_type=jnp.float32)
    wide = jnp.where(hidden[:, None, None], -jnp.inf, wide)
    own, deep = query.astype(jnp.float32), [tuple(x[:, :, :, None] for x in rows) for rows in later]
    scores = [jnp.moveaxis((own * keys).sum(-1, keepdims=True), 1, 3) for keys, _ in deep]
    peak = functools.reduce(jnp.maximum, scores, wide.max(-1, keepdims=True))
    peak = jax.lax.stop_gradient(peak)
    weights = jnp.exp(wide - peak)
    total = weights.sum(-1, keepdims=True)
    mixed = jnp.einsum(
        "bkgts,bskd->bkgtd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    for score, (_, values) in zip(scores, deep, strict=True):
        weight = jnp.exp(score - peak)
        total += weight
        mixed += weight * jnp.moveaxis(values, 1, 3)
    return jnp.moveaxis(mixed / total, 3, 1).astype(query.dtype)


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

    def read(
        self,
        params: Any,
        layers: Sequence[Any],
        embedded: Float[Array, "B T D"],
        features: Float[Array, "B T D"],
        program: MaskProgram,
    ) -> Float[Array, "B T D"]:
        """The rows behind several layers in which they see each other as `program` says."""
        x = self.enter(params, unit(embedded), features)
        for layer in layers:
            x = block(self.config, self.kv_dtype, layer, x, program, None)
        return x

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
