"""EAGLE heads: one layer of the target's kind that goes on with the target's last hidden states.

Row i joins the state of token i with token i + 1, and the layer's output stands for the state of
token i + 1: the target's own head reads the token behind it. The layer has no norm before its
attention (arXiv:2401.15077 section 3.2).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks
from jaxdecode.core.attention import XLA, View
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Rows, Target, TargetOutput
from jaxdecode.models import decoder, extra, layout
from jaxdecode.models.config import ModelConfig, Rope
from jaxdecode.models.layers import Attention, GatedMLP, RMSNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerShape:
    """How the layer differs from the target's own; None is as they are.

    Published heads bring their layer's settings with them, and these need not be the target's.

    Attributes:
        rope_theta: base of its rotary embedding, which is then not stretched.
        norm_eps: epsilon of its norms.
        qkv_bias: whether query, key and value projections have biases.
        qk_norm: whether queries and keys are normalised.
    """

    rope_theta: float | None = None
    norm_eps: float | None = None
    qkv_bias: bool | None = None
    qk_norm: bool | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        for name in ("rope_theta", "norm_eps"):
            if getattr(self, name) is not None:
                checks.number(name, getattr(self, name), "above 0", lambda x: x > 0)

    def config(self, target: ModelConfig) -> ModelConfig:
        """The layer's config."""
        own = extra.like(target)
        if self.rope_theta is not None:
            own = dataclasses.replace(own, rope=Rope(theta=self.rope_theta))
        given = {name: getattr(self, name) for name in ("norm_eps", "qkv_bias", "qk_norm")}
        changes = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(own, **changes)

    def attention(self, target: ModelConfig, attn: Any) -> Any:
        """Parameters of an attention of the target's, as the layer has them."""
        own, qkv = self.config(target), {"kernel": attn["qkv"]["kernel"]}
        if own.qkv_bias:
            qkv["bias"] = attn["qkv"].get("bias", jnp.zeros(qkv["kernel"].shape[1:]))
        made = {"qkv": qkv, "o": attn["o"]}
        if own.qk_norm:
            ones = {"scale": jnp.full(own.head_dim, 1.0 - own.norm_offset)}
            made |= {name: attn.get(name, ones) for name in ("q_norm", "k_norm")}
        return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape(LayerShape):
    """What the target leaves open.

    Attributes:
        enter_bias: whether the projection in front of the layer has a bias.
    """

    enter_bias: bool = True


class Layer(NamedTuple):
    """A layer whose attention may read wider rows than it adds to; hashable.

    Parameters are `attn`, `mlp_norm` and `mlp`.

    Attributes:
        config: of the layer.
        kv_dtype: dtype of its keys and values.
    """

    config: ModelConfig
    kv_dtype: Any

    def norm(self, params: Any, x: Float[Array, "*B D"]) -> Any:
        """RMS norm as the target has it."""
        norm = RMSNorm(self.config.norm_eps, self.config.norm_offset)
        return norm.apply({"params": params}, x)

    def __call__(
        self,
        params: Any,
        read: Float[Array, "B T I"],
        x: Float[Array, "B T D"],
        program: MaskProgram,
        cached: Rows | None,
        num_out: int,
    ) -> tuple[Float[Array, "B n D"], Rows]:
        """Outputs of the last `num_out` rows, and keys and values of all.

        Args:
            params: of the layer.
            read: what its attention reads.
            x: what it adds to.
            program: who sees whom.
            cached: rows of one layer, or None.
            num_out: n.
        """
        view = None if cached is None else View(cached[0][0], cached[1][0])
        turned = extra.angles(self.config, program.positions)
        attend = Attention(self.config, self.kv_dtype, XLA)
        out: Any = attend.apply({"params": params["attn"]}, read, turned, program, view, 0)
        mixed, rows = out
        return self.after(params, (x + mixed)[:, -num_out:]), ((rows[0],), (rows[1],))

    def after(self, params: Any, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """What is behind the attention."""
        mlp = GatedMLP(self.config, self.kv_dtype)
        update: Any = mlp.apply({"params": params["mlp"]}, self.norm(params["mlp_norm"], x))
        return x + update


class Parts(NamedTuple):
    """The heads' functions; hashable. Those of EAGLE-3 have the same names.

    Attributes:
        layer: the layer.
        target: the target's functions.
    """

    layer: Layer
    target: Target

    @property
    def taps(self) -> tuple[str, ...]:
        """Hidden states of the target that are read besides the last."""
        return ()

    def features(self, params: Any, output: TargetOutput) -> Float[Array, "B T D"]:
        """What rows are made from, of the target's pass."""
        del params
        return output.hidden

    def enter(
        self, params: Any, target: Any, tokens: Int[Array, "B T"], features: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T I"], Float[Array, "B T D"]]:
        """What the attention reads, and what it adds to."""
        embed = self.target.embed
        assert embed is not None
        embedded = jax.lax.stop_gradient(embed(target, tokens))
        both = jnp.concatenate([embedded, features.astype(embedded.dtype)], axis=-1)
        own = params["enter"]
        x = both.astype(jnp.float32) @ own["kernel"].astype(jnp.float32)
        x = (x + own["bias"] if "bias" in own else x).astype(embedded.dtype)
        return x, x

    def scores(self, params: Any, target: Any, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """float32 scores of the token behind a state, by column."""
        del params
        return self.target.logits(target, x)

    def tokens(self, params: Any, columns: Int[Array, "*B"]) -> Int[Array, "*B"]:
        """The tokens of columns."""
        del params
        return columns


def run(
    parts: Any,
    params: Any,
    target: Any,
    tokens: Int[Array, "B T"],
    features: Float[Array, "B T D"],
    program: MaskProgram,
    cached: Rows | None = None,
    num_out: int | None = None,
) -> tuple[Float[Array, "B n D"], Rows]:
    """States behind the tokens: of the last n rows, by default of all; and all rows' cache.

    Args:
        parts: `Parts`, or those of `eagle3`.
        params: of the heads.
        target: the target's parameters.
        tokens: the tokens behind those of the features.
        features: the target's, or the heads' own of earlier rows.
        program: who sees whom.
        cached: the heads' rows of the text.
        num_out: n.
    """
    read, x = parts.enter(params, target, tokens, features)
    return parts.layer(params, read, x, program, cached, num_out or tokens.shape[1])


def bind(shape: Shape, config: ModelConfig, kv_dtype: Any, target: Target) -> Parts:
    """The heads of a target."""
    return Parts(Layer(shape.config(config), kv_dtype), target)


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training: a copy of the target's last layer behind a fresh projection."""
    last, width = last_layer(target), config.hidden_size
    params = {name: last[name] for name in ("mlp_norm", "mlp")}
    params["attn"] = shape.attention(config, last["attn"])
    kernel = jax.random.normal(key, (2 * width, width)) * 0.1 * (2 * width) ** -0.5
    kernel += jnp.concatenate([jnp.zeros((width, width)), jnp.eye(width)])
    enter = {"kernel": kernel} | ({"bias": jnp.zeros(width)} if shape.enter_bias else {})
    return params | {"enter": enter}


def last_layer(target: Any) -> Any:
    """The target's last layer in float32."""
    layers = layout.without_copies(target)["layers"]
    layers = layers if isinstance(layers, list | tuple) else decoder.unstack(layers)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), dict(layers[-1]))
