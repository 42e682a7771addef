"""Chimera: a layer that sees the target's states of the text, and drafts as trigrams.

A drafted token enters as a feature of itself and the two tokens before it (the trigram encoder). A
layer of the target's kind looks from there at the target's last hidden states of all tokens and at
the features drafted so far (the full-context encoder). What it says and the target's last state
together are read for the next token (arXiv:2402.15758 section 3).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks
from jaxdecode.core import ops
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Rows
from jaxdecode.heads import eagle
from jaxdecode.models import extra, residual
from jaxdecode.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape(eagle.LayerShape):
    """Sizes, and how the layer differs from the target's.

    Attributes:
        num_heads: tokens that are guessed ahead.
        own_head: an output matrix of its own over both states, V x 2D, as the paper has it;
            otherwise both are joined, 2D x D, and the target's head reads them.
    """

    num_heads: int = 4
    own_head: bool = False

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
        checks.integer("num_heads", self.num_heads, low=1, high=64)


class Parts(NamedTuple):
    """The functions; hashable.

    Attributes:
        layer: the full-context encoder.
        own_head: as in `Shape`.
    """

    layer: eagle.Layer
    own_head: bool

    def trigrams(self, params: Any, embedded: Float[Array, "*B 3 D"]) -> Float[Array, "*B D"]:
        """Features of tokens, from the embeddings of the two before each and its own."""
        joined = embedded.reshape(*embedded.shape[:-2], -1)
        mixed = residual.apply(params["trigram"]["block"], joined)
        return residual.linear(params["trigram"]["out"], mixed).astype(embedded.dtype)

    def normed(self, params: Any, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """What the layer's attention reads of a row."""
        out: Any = self.layer.norm(params["attn_norm"], x)
        return out

    def rows(
        self, params: Any, hidden: Float[Array, "B T D"], positions: Int[Array, "B T"]
    ) -> Rows:
        """Keys and values of the target's states, as a cache of one layer takes them."""
        layer, read = self.layer, self.normed(params, hidden)
        made = extra.keys_and_values(layer.config, layer.kv_dtype, params["attn"], read, positions)
        return (made[0],), (made[1],)

    def below(
        self,
        params: Any,
        x: Float[Array, "B R D"],
        program: MaskProgram,
        cached: Rows,
        num_out: int,
    ) -> Float[Array, "B n D"]:
        """What the layer says of the last n rows of drafts."""
        return self.layer(params, self.normed(params, x), x, program, cached, num_out)[0]

    def scores(
        self,
        params: Any,
        hidden: Float[Array, "*B D"],
        out: Float[Array, "*B D"],
        target_logits: Callable[[Array], Array],
    ) -> Float[Array, "*B V"]:
        """float32 scores of the token behind a draft.

        Args:
            params: of the heads.
            hidden: the target's last state.
            out: what the layer says of the draft.
            target_logits: the target's head.
        """
        both = jnp.concatenate([hidden, out.astype(hidden.dtype)], axis=-1)
        if self.own_head:
            return ops.linear_transposed(both, params["output"]["kernel"])
        return target_logits(residual.linear(params["join"], both).astype(hidden.dtype))


def bind(shape: Shape, config: ModelConfig, kv_dtype: Any) -> Parts:
    """The heads of a target."""
    return Parts(eagle.Layer(shape.config(config), kv_dtype), shape.own_head)


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training.

    The layer is a copy of the target's last one, a feature is the embedding of its own token, and
    the head adds what the target's head says of both states.
    """
    del key
    width, last = config.hidden_size, eagle.last_layer(target)
    params = {name: last[name] for name in ("attn_norm", "mlp_norm", "mlp")}
    params["attn"] = shape.attention(config, last["attn"])
    newest = jnp.eye(3 * width, width, -2 * width)
    params["trigram"] = {
        "block": residual.init(3 * width),
        "out": {"kernel": newest, "bias": jnp.zeros(width)},
    }
    if shape.own_head:
        tied = config.tied_embeddings
        table = target["embed"]["embedding"] if tied else target["head"]["kernel"]
        both = jnp.concatenate([table, table], axis=1)
        return params | {"output": {"kernel": both.astype(jnp.float32)}}
    eye = jnp.eye(width)
    join = {"kernel": jnp.concatenate([eye, eye]), "bias": jnp.zeros(width)}
    return params | {"join": join}
