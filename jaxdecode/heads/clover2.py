"""Clover-2 heads: a state that takes in each drafted token before the next one is read off it.

A token enters by the target's own output matrix, whose row stands for it, through a regressive
attention: one scalar per attention head, the cosine of a query of the state and a key of the token,
weighs a value of the token, and the sum is the new state. Before the heads, layers of the target's
kind, copies of its last at first, look at the states of the whole text (arXiv:2408.00264).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks
from jaxdecode.core import ops
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Rows
from jaxdecode.models import decoder, extra, layout, residual
from jaxdecode.models.config import ModelConfig
from jaxdecode.models.layers import RMSNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        num_heads: tokens that are guessed ahead in training; decoding may go as deep.
        num_layers: layers in front of the heads.
    """

    num_heads: int = 5
    num_layers: int = 2

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_heads", self.num_heads, low=1, high=64)
        checks.integer("num_layers", self.num_layers, low=1, high=16)


class Parts(NamedTuple):
    """The heads' functions; hashable.

    Attributes:
        config: of the layers in front.
        kv_dtype: dtype of their keys and values.
        tied: whether the target's output matrix is its embedding.
    """

    config: ModelConfig
    kv_dtype: Any
    tied: bool

    def embed(self, target: Any, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """What stands for tokens: their rows of the target's output matrix."""
        table = target["embed"]["embedding"] if self.tied else target["head"]["kernel"]
        return ops.embed(table, tokens)

    def norm(self, scale: Any, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """RMS norm as the target has it."""
        out: Any = RMSNorm(self.config.norm_eps, self.config.norm_offset).apply(
            {"params": {"scale": scale}}, x
        )
        return out

    def attend(
        self, params: Any, x: Float[Array, "*B D"], embedded: Float[Array, "*B D"]
    ) -> Float[Array, "*B D"]:
        """The state with a token in it, by regressive attention."""
        heads = self.config.num_heads

        def split(z: Array) -> Array:
            return z.reshape(*z.shape[:-1], heads, -1)

        query = split(residual.linear(params["query"], self.norm(params["scale"], x)))
        key = split(residual.linear(params["key"], embedded))
        value = split(residual.linear(params["value"], embedded))
        sizes = [jnp.sqrt((z**2).sum(-1, keepdims=True) + 1e-12) for z in (query, key)]
        weight = (query * key).sum(-1, keepdims=True) / (sizes[0] * sizes[1])
        return x.astype(jnp.float32) + (weight * value).reshape(x.shape)

    def layers(
        self,
        params: Any,
        x: Float[Array, "B T D"],
        program: MaskProgram,
        cached: Rows | None = None,
    ) -> tuple[Float[Array, "B T D"], Rows]:
        """States that have seen the text, and keys and values of these rows."""
        own = decoder.make_target(self.config, self.kv_dtype)
        assert own.layers is not None
        num = self.config.num_layers
        stack = {"layers": [params[f"layer.{i}"] for i in range(num)]}
        return own.layers(stack, x, program, cached, 0, num)

    def first(self, params: Any, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """What the target's head reads of the first guess."""
        return self.norm(params["norm"], residual.linear(params["first"], x))

    def later(
        self, params: Any, x: Float[Array, "*B D"], embedded: Float[Array, "*B D"]
    ) -> tuple[Float[Array, "*B D"], Float[Array, "*B D"]]:
        """What it reads of the guess behind a drafted token, and the state with the token in it."""
        x = self.attend(params["take_in"], x, embedded)
        both = jnp.concatenate([x, embedded.astype(x.dtype)], axis=-1)
        return self.norm(params["norm"], residual.linear(params["later"], both)), x


def bind(shape: Shape, config: ModelConfig, kv_dtype: Any) -> Parts:
    """The heads of a target."""
    own = dataclasses.replace(extra.like(config, shape.num_layers), post_norms=config.post_norms)
    return Parts(own, kv_dtype, config.tied_embeddings)


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training: copies of the target's last layer and its final norm."""
    width, keys = config.hidden_size, jax.random.split(key, 2)
    layers = layout.without_copies(target)["layers"]
    layers = layers if isinstance(layers, list | tuple) else decoder.unstack(layers)
    last = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), layers[-1])
    params: dict[str, Any] = {f"layer.{i}": last for i in range(shape.num_layers)}
    scale = target["final_norm"]["scale"].astype(jnp.float32)
    return params | {
        "norm": scale,
        "extract": _attention(config, keys[0]),
        "take_in": _attention(config, keys[1]),
        "first": _linear(jnp.eye(width)),
        "later": _linear(jnp.eye(2 * width, width)),
    }


def _attention(config: ModelConfig, key: Array) -> dict[str, Any]:
    keys, width = jax.random.split(key, 3), config.hidden_size

    def near(base: Any, key: Array) -> dict[str, Any]:
        return _linear(base + jax.random.uniform(key, (width, width), minval=-0.01, maxval=0.01))

    eye = jnp.eye(width)
    return {
        "scale": jnp.full(width, 1.0 - config.norm_offset),
        "query": near(eye, keys[0]),
        "key": near(eye, keys[1]),
        "value": near(jnp.zeros_like(eye), keys[2]),
    }


def _linear(kernel: Float[Array, "I O"]) -> dict[str, Any]:
    return {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])}
