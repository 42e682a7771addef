"""Linen definitions of one transformer block. Mask, positions and cache are arguments.

Residual stream and weights share one dtype; norms, RoPE, scores and accumulations are float32. What
products return is rounded to the dtype of keys and values: float32 on CPU, where 16 bit is slow.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode.core import ops
from jaxdecode.core.attention import XLA, Backend, View, attention
from jaxdecode.core.masks import MaskProgram
from jaxdecode.models import layout, lora, rounding
from jaxdecode.models.config import ModelConfig
from jaxdecode.models.rope import rotate

Angles = tuple[Float[Array, "B T d"], Float[Array, "B T d"]]
# 0 is all positions; a traced value lets windowed and full layers share one scanned body.
Window = int | Int[Array, ""]
NewRows = tuple[Float[Array, "B K d T"], Float[Array, "B K T d"]]


class RMSNorm(nn.Module):
    """Divides by the root mean square over the last axis and scales; computed in float32."""

    eps: float
    offset: float

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        init = nn.initializers.constant(1.0 - self.offset)
        scale = self.param("scale", init, (x.shape[-1],)).astype(jnp.float32) + self.offset
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), -1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + self.eps) * scale).astype(x.dtype)


def _copy_for(module: nn.Module, x: Array, name: str, default: Any) -> Any:
    """The named copy of a kernel if there is one and x has the number of rows it is made for."""
    fits = (x.size == x.shape[-1]) == (name == layout.ONE_ROW)
    has_copy = fits and module.has_variable("params", name)
    return module.get_variable("params", name) if has_copy else default


def _adapted(module: nn.Module, x: Array, out: Array) -> Array:
    """What the product returned, changed by the layer's adapter if it has one."""
    if not module.has_variable("params", lora.NAME):
        return out
    adapter: Any = module.get_variable("params", lora.NAME)
    return lora.add(adapter, x, out)


def _as_read(module: nn.Module, x: Array) -> Array:
    """What the product reads: `x`, or what is to be made of it first."""
    if not module.has_variable("params", rounding.NAME):
        return x
    how: Any = module.get_variable("params", rounding.NAME)
    return rounding.read(how, x)


class Linear(nn.Module):
    """Product with a `[in, *features]` kernel, returned in `dtype`."""

    features: tuple[int, ...]
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T ..."]:
        width = x.shape[-1]
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0)
        kernel = self.param("kernel", init, (width, *self.features))
        kernel = _copy_for(self, x, layout.ONE_ROW, kernel)
        out = _adapted(self, x, ops.linear(_as_read(self, x), kernel, self.dtype))
        if self.use_bias:
            out += self.param("bias", nn.initializers.zeros, self.features).astype(out.dtype)
        return out


class OutputLinear(nn.Module):
    """Product with a `[out, in]` kernel, back to the residual stream, returned in `dtype`."""

    features: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0)
        kernel = self.param("kernel", init, (self.features, x.shape[-1]))
        many_rows = _copy_for(self, x, layout.MANY_ROWS, None)
        rows = _as_read(self, x)
        if many_rows is not None:
            out = ops.linear(rows, many_rows, self.dtype)
        else:
            one_row = _copy_for(self, x, layout.ONE_ROW, kernel)
            out = ops.linear_transposed(rows, one_row, self.dtype)
        out = _adapted(self, x, out)
        if self.use_bias:
            out += self.param("bias", nn.initializers.zeros, (self.features,)).astype(out.dtype)
        return out


class Attention(nn.Module):
    """Grouped-query attention with fused projections, RoPE and optional query/key norms."""

    config: ModelConfig
    dtype: Any
    backend: Backend

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        angles: Angles,
        mask: MaskProgram,
        cached: View | None,
        window: Window,
    ) -> tuple[Float[Array, "B T D"], NewRows]:
        c = self.config
        batch, num_rows, _ = x.shape
        features = (c.num_kv_heads, c.group_size + 2, c.head_dim)
        qkv = Linear(features, c.qkv_bias, self.dtype, name="qkv")(x)
        query, key, value = qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]
        if c.qk_norm:
            query = RMSNorm(c.norm_eps, c.norm_offset, name="q_norm")(query)
            key = RMSNorm(c.norm_eps, c.norm_offset, name="k_norm")(key)
        query = (rotate(query, *angles) * c.query_scale).astype(self.dtype)
        new_key = rotate(key, *angles).astype(self.dtype).transpose(0, 2, 3, 1)
        new_value = value.astype(self.dtype).transpose(0, 2, 1, 3)
        mixed = attention(
            query.transpose(0, 2, 3, 1, 4),
            new_key,
            new_value,
            cached,
            mask=mask,
            window=window,
            backend=self.backend,
        )
        mixed = mixed.transpose(0, 3, 1, 2, 4).reshape(batch, num_rows, -1)
        out = OutputLinear(c.hidden_size, c.o_bias, self.dtype, name="o")(mixed)
        return out.astype(x.dtype), (new_key, new_value)


class GatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))` with gate and up in one product."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        c = self.config
        both = Linear((2, c.intermediate_size), c.mlp_bias, self.dtype, name="gate_up")(x)
        gate, up = (both[..., i, :].astype(jnp.float32) for i in range(2))
        gate = jax.nn.silu(gate) if c.activation == "silu" else jax.nn.gelu(gate, approximate=True)
        down = OutputLinear(c.hidden_size, c.mlp_bias, self.dtype, name="down")
        return down(gate * up).astype(x.dtype)


class Block(nn.Module):
    """Attention and MLP, each behind a norm.

    Returns the residual stream after attention, and what the MLP adds to it: the sum is the
    caller's, who may leave it to the next layer.

    Attributes:
        config: the model.
        kv_dtype: dtype of keys and values, and of what products return.
        backend: who computes attention.
        remat: whoever runs it computes its activations again in the backward pass.
    """

    config: ModelConfig
    kv_dtype: Any
    backend: Backend = XLA
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        angles: Angles,
        mask: MaskProgram,
        cached: View | None,
        window: Window,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"], NewRows]:
        def norm(name):
            return RMSNorm(self.config.norm_eps, self.config.norm_offset, name=name)

        attend = Attention(self.config, self.kv_dtype, self.backend, name="attn")
        mixed, rows = attend(norm("attn_norm")(x), angles, mask, cached, window)
        x = x + (norm("attn_post_norm")(mixed) if self.config.post_norms else mixed)
        update = GatedMLP(self.config, self.kv_dtype, name="mlp")(norm("mlp_norm")(x))
        return x, norm("mlp_post_norm")(update) if self.config.post_norms else update, rows
