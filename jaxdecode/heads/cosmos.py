"""Cosmos: a text as a few vectors, a coder to and from them, and what tells them from noise.

The frozen target reads a text alone; the coder presses its states into `num_latents` vectors and
says from them, place by place, the states, the token, and whether there is one at all, so length is
part of the vectors. The denoiser works on these vectors, scaled to mean 0 and variance 1, beside
the target's states of the prompt. Tokens are scored by the target's own head (arXiv:2506.21170).

Differs from the paper: the target stands for its bidirectional encoder; sizes are ours.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.models.bidirectional import Clock, Dense, Side, Stack, check_width, normal
from jaxdecode.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        num_latents: vectors of a text.
        latent_size: numbers of each.
        width: of the layers.
        num_heads: of attention; an even part of the width.
        num_coder_layers: layers to the vectors, and as many back.
        num_layers: layers of the denoiser.
        max_length: tokens of the longest text.
        hardness: d of the schedule of noise; more is more noise in the middle.
    """

    num_latents: int = 16
    latent_size: int = 64
    width: int = 256
    num_heads: int = 4
    num_coder_layers: int = 2
    num_layers: int = 4
    max_length: int = 128
    hardness: float = 5.0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        for name in ("num_latents", "latent_size", "width", "num_heads", "num_layers"):
            checks.integer(name, getattr(self, name), low=1)
        checks.integer("num_coder_layers", self.num_coder_layers, low=1)
        checks.integer("max_length", self.max_length, low=1, high=4096)
        checks.number("hardness", self.hardness, "above 0", lambda x: x > 0)
        check_width(self.width, self.num_heads)


class _Net(nn.Module):
    """All layers; a method for each thing that is asked."""

    shape: Shape
    hidden_size: int

    def setup(self) -> None:
        shape, small = self.shape, nn.initializers.normal(0.02)
        seats = (shape.num_latents, shape.width)
        self.queries = self.param("queries", nn.initializers.normal(1.0), seats)
        self.features = Dense(shape.width)
        self.compressor = Stack(shape.num_coder_layers, shape.num_heads)
        self.latent = Dense(shape.latent_size)
        self.spread, self.place = Dense(shape.width), Clock(shape.width)
        self.decoder = Stack(shape.num_coder_layers, shape.num_heads)
        self.states, self.code = Dense(self.hidden_size), Dense(self.hidden_size)
        self.exists = Dense(1)
        zeros = nn.initializers.zeros
        self.mean = self.param("mean", zeros, (shape.num_latents, shape.latent_size))
        self.log_scale = self.param("log_scale", zeros, (shape.num_latents, shape.latent_size))
        self.seats = self.param("seats", small, seats)
        self.noisy, self.believed = Dense(shape.width), Dense(shape.width)
        self.clock, self.source = Clock(shape.width), Dense(shape.width)
        self.denoiser = Stack(shape.num_layers, shape.num_heads)
        self.clean = Dense(shape.latent_size)

    def _spots(self, batch: int) -> Int[Array, "B N"]:
        """Where in a text the vectors sit: spread evenly."""
        num = self.shape.num_latents
        spots = jnp.arange(num, dtype=jnp.int32) * self.shape.max_length // num
        return jnp.broadcast_to(spots, (batch, num))

    def compress(self, states, places, real):
        batch, num = states.shape[0], self.shape.num_latents
        queries = jnp.broadcast_to(self.queries, (batch, *self.queries.shape))
        own = Side(queries, self._spots(batch), jnp.ones((batch, num, num), bool))
        sees = jnp.broadcast_to(real[:, None], (batch, num, real.shape[1]))
        found = self.latent(self.compressor(own, Side(self.features(states), places, sees)))
        return normal(found)

    def expand(self, latents, width):
        batch, num = latents.shape[0], self.shape.num_latents
        places = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (batch, width))
        # Places of a text do not see each other: how many are asked for changes none of them.
        alone = jnp.broadcast_to(jnp.eye(width, dtype=bool), (batch, width, width))
        own = Side(self.place(places / self.shape.max_length), places, alone)
        sees = jnp.ones((batch, width, num), bool)
        found = self.decoder(own, Side(self.spread(latents), self._spots(batch), sees))
        return self.states(found), self.code(found), self.exists(found)[..., 0]

    def statistics(self):
        return self.mean, self.log_scale

    def denoise(self, noisy, believed, time, states, places, real):
        batch, num = noisy.shape[0], self.shape.num_latents
        x = self.noisy(noisy) + self.believed(believed) + self.clock(time)[:, None] + self.seats
        own = Side(x, self._spots(batch), jnp.ones((batch, num, num), bool))
        sees = jnp.broadcast_to(real[:, None], (batch, num, real.shape[1]))
        return self.clean(self.denoiser(own, Side(self.source(states), places, sees)))

    def __call__(self, states, places, real):
        latents = self.compress(states, places, real)
        out = self.expand(latents, 1)
        time = jnp.zeros(states.shape[0])
        clean = self.denoise(latents, latents, time, states, places, real)
        return out, clean, self.statistics()


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training; the target decides how wide its states are."""
    del target
    states = jnp.zeros((1, 2, config.hidden_size))
    places, real = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    make = jax.jit(_Net(shape, config.hidden_size).init)
    params: Any = make(key, states, places, real)["params"]
    return params


def features(hidden: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """The target's states as the coder reads and says them: mean 0 and variance 1, float32."""
    return normal(hidden.astype(jnp.float32))


def compress(
    shape: Shape,
    params: Any,
    states: Float[Array, "B T D"],
    places: Int[Array, "B T"],
    real: Bool[Array, "B T"],
) -> Float[Array, "B N d"]:
    """The vectors of a text from its features; each has mean 0 and variance 1."""
    return _apply(shape, params, "compress", states, places, real)


def expand(
    shape: Shape, params: Any, latents: Float[Array, "B N d"], width: int
) -> tuple[Float[Array, "B W D"], Float[Array, "B W D"], Float[Array, "B W"]]:
    """Features, what the target's head reads, and log-odds of a token, of the first places."""
    return _apply(shape, params, "expand", latents, width)


def standard(shape: Shape, params: Any, latents: Float[Array, "B N d"]) -> Float[Array, "B N d"]:
    """The vectors scaled to mean 0 and variance 1 over texts, number by number."""
    mean, log_scale = _apply(shape, params, "statistics")
    return (latents - mean) * jnp.exp(-log_scale)


def unscaled(shape: Shape, params: Any, latents: Float[Array, "B N d"]) -> Float[Array, "B N d"]:
    """The inverse of `standard`."""
    mean, log_scale = _apply(shape, params, "statistics")
    return latents * jnp.exp(log_scale) + mean


def surprise(shape: Shape, params: Any, latents: Float[Array, "B N d"]) -> Float[Array, "B"]:
    """-log of their normal law, per number: smallest where `standard` has their own statistics."""
    _, log_scale = _apply(shape, params, "statistics")
    return (0.5 * jnp.square(standard(shape, params, latents)) + log_scale).mean((-2, -1))


def denoise(
    shape: Shape,
    params: Any,
    noisy: Float[Array, "B N d"],
    believed: Float[Array, "B N d"],
    time: Float[Array, "B"],
    prompt: Side,
) -> Float[Array, "B N d"]:
    """Scaled vectors without noise.

    Args:
        shape: sizes.
        params: of all layers.
        noisy: scaled vectors under the noise of the time.
        believed: what was said of them before; zeros if nothing was.
        time: from 0, no noise, to 1.
        prompt: features of the prompt; `seen [B, S]` says which there are.
    """
    return _apply(shape, params, "denoise", noisy, believed, time, *prompt)


def _apply(shape: Shape, params: Any, method: str, *given: Any) -> Any:
    hidden_size = params["states"]["bias"].shape[0]
    return _Net(shape, hidden_size).apply({"params": params}, *given, method=method)
