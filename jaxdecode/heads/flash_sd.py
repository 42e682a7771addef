"""A drafter whose one layer says k states at once, and that reads an image as a few rows.

Row i joins the target's last state of token i with the embedding of token i + 1. A causal
attention and an MLP with k outputs turn it into the states of tokens i + 1 to i + k, which the
target's head reads. Rows of an image say much the same many times: learned queries mix them to
`num_queries` rows, by what their states are, whatever their order (arXiv:2505.12728).
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdecode import checks
from jaxdecode.core.attention import XLA, View
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Rows
from jaxdecode.core.types import pytree
from jaxdecode.models import extra
from jaxdecode.models.config import ModelConfig
from jaxdecode.models.layers import Attention, Linear, RMSNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        block: k, states that a row says.
        image_token: the token that stands in a prompt for each row of an image; None where there
            are none.
        num_queries: rows that an image is mixed to.
    """

    block: int = 5
    image_token: int | None = None
    num_queries: int = 64

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("block", self.block, low=1, high=64)
        checks.integer("num_queries", self.num_queries, low=1, high=1024)
        if self.image_token is not None:
            checks.integer("image_token", self.image_token, low=0)


class Layer(nn.Module):
    """Attention of rows over rows, and an MLP with k outputs per row."""

    config: ModelConfig
    kv_dtype: Any
    block: int

    @nn.compact
    def __call__(self, x, angles, mask, cached):
        def norm(name):
            return RMSNorm(self.config.norm_eps, self.config.norm_offset, name=name)

        def linear(name, *features):
            return Linear(features, True, self.kv_dtype, name=name)

        attend = Attention(self.config, self.kv_dtype, XLA, name="attn")
        mixed, _ = attend(norm("attn_norm")(x), angles, mask, cached, 0)
        width = self.config.hidden_size
        wide = linear("up", 4 * width)(norm("mlp_norm")(x + mixed))
        return linear("down", self.block, width)(nn.silu(wide)).astype(x.dtype)


class Drafting(NamedTuple):
    """The drafter's functions; hashable.

    Attributes:
        pairs: its rows.
        block: states that a row says.
    """

    pairs: extra.Pairs
    block: int

    def states(
        self,
        params: Any,
        x: Float[Array, "B T D"],
        program: MaskProgram,
        cached: Rows | None = None,
    ) -> Float[Array, "B T k D"]:
        """The states that each row says."""
        view = None if cached is None else View(cached[0][0], cached[1][0])
        layer = Layer(self.pairs.config, self.pairs.kv_dtype, self.block)
        angles = extra.angles(self.pairs.config, program.positions)
        out: Any = layer.apply({"params": params["layer"]}, x, angles, program, view)
        return out


@pytree
class Pool:
    """An image so far, mixed by every query; more rows may come in later chunks.

    Attributes:
        peak: highest score.
        total: sum of all weights, which are exp(score - peak).
        mixed: sum of the rows by weight: embedding, then state.
    """

    peak: Float[Array, "B Q"]
    total: Float[Array, "B Q"]
    mixed: Float[Array, "B Q 2D"]

    def add(
        self,
        queries: Float[Array, "Q D"],
        embedded: Float[Array, "B T D"],
        features: Float[Array, "B T D"],
        image: Bool[Array, "B T"],
    ) -> "Pool":
        """With the rows of a chunk that belong to the image."""
        rows = features.astype(jnp.float32)
        scores = jnp.einsum("qd,btd->bqt", queries, rows) * rows.shape[-1] ** -0.5
        scores = jnp.where(image[:, None], scores, -jnp.inf)
        peak = jnp.maximum(self.peak, scores.max(-1))
        # Without any row so far there is nothing to scale.
        level = jnp.where(peak > -jnp.inf, peak, 0.0)
        kept, weights = jnp.exp(self.peak - level), jnp.exp(scores - level[..., None])
        both = jnp.concatenate([embedded.astype(jnp.float32), rows], axis=-1)
        return Pool(
            peak=peak,
            total=self.total * kept + weights.sum(-1),
            mixed=self.mixed * kept[..., None] + jnp.einsum("bqt,btd->bqd", weights, both),
        )

    def read(self) -> tuple[Float[Array, "B Q D"], Float[Array, "B Q D"]]:
        """Embedding and state of every query's mixture; zeros where there is no image."""
        means = self.mixed / jnp.maximum(self.total, 1e-30)[..., None]
        embedded, features = jnp.split(means, 2, axis=-1)
        return embedded, features


def no_image(batch: int, num_queries: int, width: int) -> Pool:
    """The pool before the first row."""
    return Pool(
        peak=jnp.full((batch, num_queries), -jnp.inf),
        total=jnp.zeros((batch, num_queries)),
        mixed=jnp.zeros((batch, num_queries, 2 * width)),
    )


def bind(shape: Shape, config: ModelConfig, kv_dtype: Any) -> Drafting:
    """The drafter of a target."""
    return Drafting(extra.Pairs(extra.like(config), kv_dtype), shape.block)


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training."""
    del target
    own, keys = extra.like(config), jax.random.split(key, 3)
    x, program = extra.first_row(own)
    layer = Layer(own, jnp.float32, shape.block)
    angles = extra.angles(own, program.positions)
    params: dict[str, Any] = {
        "enter": extra.init_pair(config.hidden_size, keys[0]),
        "layer": layer.init(keys[1], x, angles, program, None)["params"],
    }
    if shape.image_token is not None:
        size = (shape.num_queries, config.hidden_size)
        params["queries"] = jax.random.normal(keys[2], size) * config.hidden_size**-0.5
    return params
