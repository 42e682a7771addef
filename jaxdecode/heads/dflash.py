"""A block drafter: rows of unknown tokens that attend to what the target knows of the text.

Hidden states of several layers of the target are joined to one context row per token. A block is
the embedding of its first token and of as many masks as there are tokens to guess; its rows pass a
few layers of their own, in which they see each other in both directions and all context rows
before them. Context rows pass no layer: every layer makes keys and values of them as they are
(arXiv:2602.06036). Final states are read by the target's head.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks
from jaxdecode.core.attention import XLA, View
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Rows
from jaxdecode.errors import InputError
from jaxdecode.heads.ppd import embeddings
from jaxdecode.models import extra
from jaxdecode.models.config import ModelConfig
from jaxdecode.models.layers import Attention, GatedMLP, RMSNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        block: rows of a block: the token it begins with, and the tokens that are guessed.
        num_layers: layers of the drafter.
        taps: layers of the target whose output is read, ascending; None spreads five over it.
    """

    block: int = 16
    num_layers: int = 5
    taps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("block", self.block, low=2, high=64)
        checks.integer("num_layers", self.num_layers, low=1, high=64)
        if self.taps is not None and (
            not self.taps
            or not all(isinstance(n, int) and n >= 0 for n in self.taps)
            or list(self.taps) != sorted(set(self.taps))
        ):
            raise InputError(f"taps={self.taps!r} must be numbers of layers from 0 on, ascending.")


def layers_of(shape: Shape, num_layers: int) -> tuple[int, ...]:
    """The layers of the target that are read.

    Raises:
        InputError: the target has no such layer.
    """
    if shape.taps is None:
        spread = (round(1 + i * (num_layers - 4) / 4) for i in range(5))
        return tuple(sorted({min(max(n, 0), num_layers - 1) for n in spread}))
    if shape.taps[-1] >= num_layers:
        raise InputError(
            f"taps={shape.taps} do not fit a target of {num_layers} layers; the last one is "
            f"{num_layers - 1}."
        )
    return shape.taps


class Layer(nn.Module):
    """Attention of a block's rows over context and block, and an MLP."""

    config: ModelConfig
    kv_dtype: Any

    @nn.compact
    def __call__(self, x, context, angles, mask, cached):
        def norm(name):
            return RMSNorm(self.config.norm_eps, self.config.norm_offset, name=name)

        rows = jnp.concatenate([context, norm("attn_norm")(x)], axis=1)
        attend = Attention(self.config, self.kv_dtype, XLA, name="attn")
        mixed, _ = attend(rows, angles, mask, cached, 0)
        x = x + mixed[:, context.shape[1] :]
        return x + GatedMLP(self.config, self.kv_dtype, name="mlp")(norm("mlp_norm")(x))


class Blocks(NamedTuple):
    """The drafter's functions; hashable.

    Attributes:
        config: its layers, which are of the target's kind.
        kv_dtype: dtype of its keys and values.
    """

    config: ModelConfig
    kv_dtype: Any

    def context(self, params: Any, taps: Sequence[Float[Array, "B T D"]]) -> Float[Array, "B T D"]:
        """One row per token, from the target's hidden states."""
        kernel, norm = params["context"]["kernel"], params["context"]["norm"]
        joined = jnp.concatenate([tap.astype(kernel.dtype) for tap in taps], axis=-1) @ kernel
        return self._norm(norm, joined).astype(taps[0].dtype)

    def rows(
        self, params: Any, context: Float[Array, "B T D"], positions: Int[Array, "B T"]
    ) -> Rows:
        """Keys and values that every layer makes of context rows."""
        made = [
            extra.keys_and_values(self.config, self.kv_dtype, layer["attn"], context, positions)
            for layer in self._layers(params)
        ]
        keys, values = zip(*made, strict=True)
        return keys, values

    def states(
        self,
        params: Any,
        x: Float[Array, "B T D"],
        program: MaskProgram,
        *,
        context: Float[Array, "B C D"] | None = None,
        cached: Rows | None = None,
    ) -> Float[Array, "B T D"]:
        """Final states of blocks.

        Args:
            params: of the drafter.
            x: rows of the blocks.
            program: who sees whom; its rows are those of `context`, then those of `x`.
            context: context rows of this pass.
            cached: context rows of earlier passes, as `rows` makes them.
        """
        angles = extra.angles(self.config, program.positions)
        context = x[:, :0] if context is None else context
        layer = Layer(self.config, self.kv_dtype)
        for i, own in enumerate(self._layers(params)):
            view = None if cached is None else View(cached[0][i], cached[1][i])
            moved: Any = layer.apply({"params": own}, x, context, angles, program, view)
            x = moved
        return self._norm(params["norm"], x)

    def _layers(self, params: Any) -> list[Any]:
        return [params["layers"][str(i)] for i in range(self.config.num_layers)]

    def _norm(self, params: Any, x: Array) -> Array:
        normed: Any = RMSNorm(self.config.norm_eps, self.config.norm_offset).apply(
            {"params": params}, x
        )
        return normed


def bind(shape: Shape, config: ModelConfig, kv_dtype: Any) -> Blocks:
    """The drafter of a target."""
    return Blocks(extra.like(config, shape.num_layers), kv_dtype)


def enter(params: Any, pending: Float[Array, "*B D"], *, num_masks: int) -> Float[Array, "*B N D"]:
    """Rows of blocks: their first tokens' embeddings, then masks."""
    first = pending[..., None, :]
    masks = jnp.broadcast_to(params["mask"], (*pending.shape[:-1], num_masks, pending.shape[-1]))
    return jnp.concatenate([first, masks.astype(first.dtype)], axis=-2)


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training; the mask begins as the embedding of some token."""
    own, width = bind(shape, config, jnp.float32).config, config.hidden_size
    keys = jax.random.split(key, shape.num_layers + 2)
    x, program = extra.first_row(own)
    angles = extra.angles(own, program.positions)

    def layer(key: Array) -> Any:
        return Layer(own, jnp.float32).init(key, x, x[:, :0], angles, program, None)["params"]

    num = len(layers_of(shape, config.num_layers))
    kernel = jax.random.normal(keys[1], (num * width, width)) * (num * width) ** -0.5
    scale = jnp.full(width, 1.0 - config.norm_offset)
    return {
        "context": {"kernel": kernel, "norm": {"scale": scale}},
        "layers": {str(i): layer(key) for i, key in enumerate(keys[2:])},
        "mask": embeddings(config, keys[0], target, 1)[0],
        "norm": {"scale": scale},
    }
