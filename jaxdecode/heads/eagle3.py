"""EAGLE-3 heads: one layer that reads three depths of the target, and has a head of its own.

Row i joins what three layers of the target say of token i with token i + 1; where the target has
not been yet, the layer's own output takes that place. The attention reads both, each behind a norm
of its own, and adds to the states (arXiv:2503.01840 section 3.1). The head scores a part of the
vocabulary; a drafter that cannot say a rare token is only slower.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks
from jaxdecode.core import ops
from jaxdecode.core.protocols import Target, TargetOutput
from jaxdecode.errors import InputError
from jaxdecode.heads import eagle
from jaxdecode.heads.eagle import Layer
from jaxdecode.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape(eagle.LayerShape):
    """Sizes, and how the layer differs from the target's.

    Attributes:
        draft_vocab: tokens that can be drafted; None for all.
        taps: layers of the target that are read, by the number of the block whose output it is;
            None for those of the paper: before layer 2, the middle and the third from the end.
    """

    draft_vocab: int | None = None
    taps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
        if self.draft_vocab is not None:
            checks.integer("draft_vocab", self.draft_vocab, low=1)
        for layer in self.taps or ():
            checks.integer("taps", layer, low=0)


class Parts(NamedTuple):
    """The heads' functions, as those of `eagle`; hashable.

    Attributes:
        layer: the layer.
        target: the target's functions.
        taps: hidden states of the target that are read.
    """

    layer: Layer
    target: Target
    taps: tuple[str, ...]

    def features(self, params: Any, output: TargetOutput) -> Float[Array, "B T D"]:
        """The three depths as one state."""
        return self.fused(params, output.taps)

    def fused(self, params: Any, taps: Mapping[str, Array]) -> Float[Array, "B T D"]:
        """As `features`, of hidden states by name."""
        seen = jnp.concatenate([taps[name] for name in self.taps], axis=-1)
        return ops.linear(seen, params["fuse"]["kernel"].astype(seen.dtype), seen.dtype)

    def enter(
        self, params: Any, target: Any, tokens: Int[Array, "B T"], features: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T I"], Float[Array, "B T D"]]:
        """As `eagle.Parts.enter`."""
        embed = self.target.embed
        assert embed is not None
        embedded = jax.lax.stop_gradient(embed(target, tokens))
        sides = (("token_norm", embedded), ("feature_norm", features.astype(embedded.dtype)))
        read = jnp.concatenate([self.layer.norm(params[name], x) for name, x in sides], axis=-1)
        return read, sides[1][1]

    def scores(self, params: Any, target: Any, x: Float[Array, "*B D"]) -> Float[Array, "*B v"]:
        """float32 scores of the token behind a state, by column of the draft vocabulary."""
        del target
        normed = self.layer.norm(params["norm"], x)
        return ops.linear_transposed(normed, params["head"]["kernel"])

    def tokens(self, params: Any, columns: Int[Array, "*B"]) -> Int[Array, "*B"]:
        """The tokens of columns."""
        return params["tokens"][columns] if "tokens" in params else columns


def bind(shape: Shape, config: ModelConfig, kv_dtype: Any, target: Target) -> Parts:
    """The heads of a target."""
    taps = tuple(f"layer.{layer}" for layer in layers_of(shape, config.num_layers))
    return Parts(Layer(shape.config(config), kv_dtype), target, taps)


def layers_of(shape: Shape, num_layers: int) -> tuple[int, ...]:
    """The layers that are read.

    Raises:
        InputError: the target has no such layer.
    """
    if shape.taps is None:
        wanted = (1, num_layers // 2 - 1, num_layers - 4)
        return tuple(min(max(layer, 0), num_layers - 1) for layer in wanted)
    if max(shape.taps) >= num_layers:
        raise InputError(
            f"taps={shape.taps} reads layer {max(shape.taps)}, but the target has {num_layers}."
        )
    return shape.taps


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training.

    The layer is a copy of the target's last one that reads the states, the head a part of its
    head. Columns are the first tokens of the vocabulary: of merges the commonest come first. Who
    knows more of the texts to come takes others (`columns`).
    """
    width, last = config.hidden_size, eagle.last_layer(target)
    keys = jax.random.split(key, 2)
    num_taps = len(layers_of(shape, config.num_layers))
    size = min(shape.draft_vocab or config.vocab_size, config.vocab_size)
    attn = shape.attention(config, last["attn"])
    qkv = attn["qkv"]["kernel"]
    fresh = jax.random.normal(keys[0], qkv.shape) * width**-0.5
    attn["qkv"] |= {"kernel": jnp.concatenate([fresh, qkv])}
    fuse = jax.random.normal(keys[1], (num_taps * width, width)) * 0.1 * width**-0.5
    fuse = fuse.at[-width:].add(jnp.eye(width))
    ones = {"scale": jnp.full(width, 1.0 - config.norm_offset)}
    params = {
        "fuse": {"kernel": fuse},
        "token_norm": ones,
        "feature_norm": last["attn_norm"],
        "attn": attn,
        "mlp_norm": last["mlp_norm"],
        "mlp": last["mlp"],
        "norm": {"scale": target["final_norm"]["scale"].astype(jnp.float32)},
    }
    chosen = columns(config, target, jnp.arange(size))
    return params | (chosen if shape.draft_vocab is not None else {"head": chosen["head"]})


def columns(config: ModelConfig, target: Any, tokens: Int[Array, "v"]) -> dict[str, Any]:
    """The parameters of a draft vocabulary before training: its tokens, and the target's rows."""
    table = target["embed"]["embedding"] if config.tied_embeddings else target["head"]["kernel"]
    kernel = table[tokens].astype(jnp.float32)
    return {"head": {"kernel": kernel}, "tokens": tokens.astype(jnp.int32)}
