"""NeoDiff: a text as one vector per token, and what tells them from noise and a prompt.

An encoder reads the prompt. The denoiser reads the vectors under noise, each with its own level,
beside it, and what it said before of the text; it says the vectors without noise. The scores of
tokens are products with the embedding, whose vectors have mean 0 and variance 1. A predictor says
how long the text is, another which level each token should have next: hard tokens stay longer
under noise (arXiv:2505.22165).

Of the target only the vocabulary is used: its parameters are not read. Differs from the authors'
code: rotary positions in place of learned ones, the length is read from the first token of the
prompt, and there is no dropout.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks
from jaxdecode.models.bidirectional import Clock, Dense, Side, Stack, check_width, normal
from jaxdecode.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        latent_size: numbers of a token's vector.
        width: of the layers.
        num_heads: of attention; an even part of the width.
        num_encoder_layers: layers that read the prompt.
        num_layers: layers of the denoiser.
        num_level_layers: layers of the predictor of levels.
        max_length: tokens of the longest text that can be written.
        num_levels: levels of noise: 0 is the least, num_levels - 1 the most.
        noise_scale: standard deviation of the noise at the last level.
    """

    latent_size: int = 128
    width: int = 256
    num_heads: int = 4
    num_encoder_layers: int = 2
    num_layers: int = 4
    num_level_layers: int = 2
    max_length: int = 128
    num_levels: int = 100
    noise_scale: float = 6.5

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        for name in ("latent_size", "width", "num_heads", "num_layers", "num_level_layers"):
            checks.integer(name, getattr(self, name), low=1)
        checks.integer("num_encoder_layers", self.num_encoder_layers, low=0)
        checks.integer("max_length", self.max_length, low=1, high=4096)
        checks.integer("num_levels", self.num_levels, low=2)
        checks.number("noise_scale", self.noise_scale, "above 0", lambda x: x > 0)
        check_width(self.width, self.num_heads)


class _Net(nn.Module):
    """All layers; a method for each thing that is asked."""

    shape: Shape
    vocab_size: int

    def setup(self) -> None:
        shape = self.shape
        init = nn.initializers.normal(1.0)
        self.embedding = self.param("embedding", init, (self.vocab_size, shape.latent_size))
        self.source = Dense(shape.width)
        self.encoder = Stack(shape.num_encoder_layers, shape.num_heads)
        self.length = Dense(shape.max_length)
        self.noisy, self.believed = Dense(shape.width), Dense(shape.width)
        self.clock = Clock(shape.width)
        self.denoiser = Stack(shape.num_layers, shape.num_heads)
        self.clean = Dense(shape.latent_size)
        self.judged, self.late = Dense(shape.width), Clock(shape.width)
        self.predictor = Stack(shape.num_level_layers, shape.num_heads)
        self.level = Dense(1)

    def table(self) -> Float[Array, "V D"]:
        """The vectors of all tokens."""
        return normal(self.embedding)

    def encode(self, tokens, positions, seen):
        return self.encoder(Side(self.source(self.table()[tokens]), positions, seen))

    def lengths(self, memory):
        return self.length(memory)

    def denoise(self, noisy, believed, share, places, memory):
        x = self.noisy(noisy) + self.believed(believed) + self.clock(share)
        return self.clean(self.denoiser(Side(x, *places), memory))

    def levels(self, clean, late, places, memory):
        x = self.judged(clean) + self.late(late)
        return nn.sigmoid(self.level(self.predictor(Side(x, *places), memory))[..., 0])

    def __call__(self, tokens, positions, seen):
        memory = Side(self.encode(tokens, positions, seen), positions, seen)
        places = (positions, seen)
        zeros = jnp.zeros((*tokens.shape, self.shape.latent_size))
        clean = self.denoise(zeros, zeros, jnp.zeros(tokens.shape), places, memory)
        late = self.levels(clean, jnp.zeros(tokens.shape), places, memory)
        return self.lengths(memory.x), clean, late


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training; the target decides how many tokens there are."""
    del target
    tokens = jnp.zeros((1, 2), jnp.int32)
    net = _Net(shape, config.vocab_size)
    seen = jnp.ones((1, 2, 2), bool)
    params: Any = jax.jit(net.init)(key, tokens, tokens, seen)["params"]
    return params


def table(shape: Shape, params: Any) -> Float[Array, "V D"]:
    """The vectors of all tokens: mean 0 and variance 1 each."""
    return _apply(shape, params, "table")


def scores(
    shape: Shape, vectors: Float[Array, "V D"], clean: Float[Array, "*B D"]
) -> Float[Array, "*B V"]:
    """Scores of all tokens for vectors without noise; `vectors` is the table.

    A token's own vector has a score of twice the root of its size: enough to be sure of one of
    many tokens, and little enough for smoothed labels.
    """
    return 2 * clean @ vectors.T * shape.latent_size**-0.5


def encode(shape: Shape, params: Any, tokens: Int[Array, "B S"], positions, seen) -> Array:
    """States of the prompt's tokens, `[B, S, width]`."""
    return _apply(shape, params, "encode", tokens, positions, seen)


def lengths(shape: Shape, params: Any, memory: Float[Array, "*B W"]) -> Float[Array, "*B L"]:
    """Scores of the lengths 1 to max_length, from the state of a prompt's first token."""
    return _apply(shape, params, "lengths", memory)


def denoise(
    shape: Shape,
    params: Any,
    noisy: Side,
    believed: Float[Array, "B T D"],
    level: Float[Array, "B T"],
    memory: Side,
) -> Float[Array, "B T D"]:
    """Vectors without noise.

    Args:
        shape: sizes.
        params: of all layers.
        noisy: the vectors under noise, and who sees whom among them.
        believed: what was said of them before; zeros if nothing was.
        level: of each vector's noise, from 0 to num_levels - 1.
        memory: states of the prompt.
    """
    share = level / (shape.num_levels - 1)
    return _apply(shape, params, "denoise", noisy.x, believed, share, noisy[1:], memory)


def levels(
    shape: Shape, params: Any, clean: Side, time: Float[Array, "B T"], memory: Side
) -> Float[Array, "B T"]:
    """The level that each vector should have at a time, from 0 to num_levels - 1."""
    found = _apply(shape, params, "levels", clean.x, time, clean[1:], memory)
    return found * (shape.num_levels - 1)


def _apply(shape: Shape, params: Any, method: str, *given: Any) -> Any:
    vocab_size = params["embedding"].shape[0]
    return _Net(shape, vocab_size).apply({"params": params}, *given, method=method)
