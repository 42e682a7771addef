"""Linen definitions of layers that see both ways, for vectors that are denoised side by side.

Everything is float32, and who sees whom is an argument. A place that sees nothing gets nothing, so
what stands in padding never matters.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.errors import InputError
from jaxdecode.models import rope
from jaxdecode.models.config import Rope

EPS = 1e-5

Dense = nn.Dense


def check_width(width: int, num_heads: int) -> None:
    """Refuses a width whose heads cannot be turned in pairs of numbers.

    Raises:
        InputError: it is no even multiple of num_heads.
    """
    if width % (2 * num_heads):
        raise InputError(f"width={width} is no even multiple of num_heads={num_heads}.")


def normal(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Vectors with mean 0 and variance 1 over their numbers."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPS)


class Side(NamedTuple):
    """What a row of places may look at.

    Attributes:
        x: vectors.
        positions: of each vector in its own text.
        seen: whether a place (first axis) sees a vector (second).
    """

    x: Float[Array, "B S D"]
    positions: Int[Array, "B S"]
    seen: Bool[Array, "B T S"]


class Attention(nn.Module):
    """Attention from places at `positions` to a side, with rotary positions."""

    num_heads: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], side: Side
    ) -> Float[Array, "B T D"]:
        width = x.shape[-1]
        heads = (self.num_heads, width // self.num_heads)

        def turned(name: str, vectors: Array, places: Array) -> Array:
            made: Any = nn.DenseGeneral(heads, name=name)(vectors)
            return rope.rotate(made, *rope.angles(Rope(), heads[1], places))

        query = turned("query", x, positions)
        key = turned("key", side.x, side.positions)
        value = nn.DenseGeneral(heads, name="value")(side.x)
        scores = jnp.einsum("bthd,bshd->bhts", query, key) * heads[1] ** -0.5
        scores = jnp.where(side.seen[:, None], scores, -jnp.inf)
        top = jnp.maximum(scores.max(-1, keepdims=True), -1e30)
        shares = jnp.exp(scores - jax.lax.stop_gradient(top))
        shares = shares / jnp.maximum(shares.sum(-1, keepdims=True), 1e-30)
        mixed = jnp.einsum("bhts,bshd->bthd", shares, value)
        return nn.DenseGeneral(width, axis=(-2, -1), name="out")(mixed)


class Block(nn.Module):
    """Attention among the places, to what stands beside them if there is any, and an MLP."""

    num_heads: int

    @nn.compact
    def __call__(
        self, own: Side, beside: Side | None = None, expand: int = 4
    ) -> Float[Array, "B T D"]:
        x, positions, seen = own
        normed: Any = nn.LayerNorm(name="norm_own")(x)
        x = x + Attention(self.num_heads, name="own")(normed, positions, Side(normed, *own[1:]))
        if beside is not None:
            normed = nn.LayerNorm(name="norm_beside")(x)
            x = x + Attention(self.num_heads, name="beside")(normed, positions, beside)
        normed = nn.LayerNorm(name="norm_mlp")(x)
        hidden = nn.gelu(Dense(expand * x.shape[-1], name="up")(normed))
        return x + Dense(x.shape[-1], name="down")(hidden)


class Stack(nn.Module):
    """Blocks and a last norm."""

    num_layers: int
    num_heads: int

    @nn.compact
    def __call__(self, own: Side, beside: Side | None = None) -> Float[Array, "B T D"]:
        x = own.x
        for layer in range(self.num_layers):
            x = Block(self.num_heads, name=f"layer_{layer}")(Side(x, *own[1:]), beside)
        normed: Any = nn.LayerNorm(name="norm")(x)
        return normed


class Clock(nn.Module):
    """A vector for a number from 0 to 1: how much noise there is, or how late it is."""

    width: int

    @nn.compact
    def __call__(self, share: Float[Array, "*B"]) -> Float[Array, "*B D"]:
        steps = jnp.arange(self.width // 2, dtype=jnp.float32) / max(self.width // 2, 1)
        angle = 1000.0 * share[..., None] * jnp.exp(-jnp.log(10_000.0) * steps)
        waves = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        return Dense(self.width)(nn.silu(Dense(self.width)(waves)))
