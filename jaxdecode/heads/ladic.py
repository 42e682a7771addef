"""LaDiC: the states of a text half way up the target, what tells them from noise, and a reader.

The frozen target reads a text alone; its states after `depth` layers, scaled to mean 0 and variance
1 number by number, are the text's vectors, one per place; places behind its end are zeros. The
denoiser works on a fixed number of places beside the features of what the text is about: the
target's states of the prompt. The reader says from vectors which token stands at each place, by the
target's own head, and whether there is one (arXiv:2404.10763).

Differs from the authors' code: the target stands for BERT, whose upper half is the reader there; an
autoregressive one says the token after each place, so the reader is trained. Features are the
prompt's; an image encoder's would take their place.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.errors import InputError
from jaxdecode.models.bidirectional import Clock, Dense, Side, Stack, check_width
from jaxdecode.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        depth: layers of the target below the vectors; None takes half of them.
        width: of the layers.
        num_heads: of attention; an even part of the width.
        num_layers: layers of the denoiser.
        num_reader_layers: layers of the reader.
        max_length: places of a text.
        num_levels: steps of the noise that is learned.
        noise_scale: standard deviation of the noise at the last of them.
    """

    depth: int | None = None
    width: int = 256
    num_heads: int = 4
    num_layers: int = 4
    num_reader_layers: int = 2
    max_length: int = 24
    num_levels: int = 1000
    noise_scale: float = 9.0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if self.depth is not None:
            checks.integer("depth", self.depth, low=1)
        for name in ("width", "num_heads", "num_layers", "num_reader_layers"):
            checks.integer(name, getattr(self, name), low=1)
        checks.integer("max_length", self.max_length, low=1, high=4096)
        checks.integer("num_levels", self.num_levels, low=2)
        checks.number("noise_scale", self.noise_scale, "above 0", lambda x: x > 0)
        check_width(self.width, self.num_heads)


class _Net(nn.Module):
    """All layers; a method for each thing that is asked."""

    shape: Shape
    hidden_size: int

    def setup(self) -> None:
        shape = self.shape
        self.noisy, self.believed = Dense(shape.width), Dense(shape.width)
        self.clock, self.source = Clock(shape.width), Dense(shape.width)
        self.denoiser = Stack(shape.num_layers, shape.num_heads)
        self.clean = Dense(self.hidden_size)
        self.vectors = Dense(shape.width)
        self.reader = Stack(shape.num_reader_layers, shape.num_heads)
        self.code, self.exists = Dense(self.hidden_size), Dense(1)

    def denoise(self, noisy, believed, share, features, positions, real):
        x = self.noisy(noisy) + self.believed(believed) + self.clock(share)[:, None]
        batch, num = noisy.shape[:2]
        seen = jnp.broadcast_to(real[:, None], (batch, num, real.shape[1]))
        beside = Side(self.source(features), positions, seen)
        return self.clean(self.denoiser(_among(x), beside))

    def read(self, vectors):
        found = self.reader(_among(self.vectors(vectors)))
        return self.code(found), self.exists(found)[..., 0]

    def __call__(self, features):
        ones = jnp.ones(features.shape[:2], bool)
        places = jnp.zeros(features.shape[:2], jnp.int32)
        time = jnp.zeros(features.shape[0])
        return self.denoise(features, features, time, features, places, ones), self.read(features)


def _among(x: Float[Array, "B N W"]) -> Side:
    """All places of a text, which see each other."""
    batch, num = x.shape[:2]
    places = jnp.broadcast_to(jnp.arange(num, dtype=jnp.int32), (batch, num))
    return Side(x, places, jnp.ones((batch, num, num), bool))


def tap(shape: Shape, config: ModelConfig) -> str:
    """The name of the target's states that are a text's vectors.

    Raises:
        InputError: the target has fewer layers.
    """
    depth = max(config.num_layers // 2, 1) if shape.depth is None else shape.depth
    if depth > config.num_layers:
        raise InputError(
            f"shape.depth={depth} is out of range; the target has {config.num_layers} layers."
        )
    return f"layer.{depth - 1}"


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training; the statistics of vectors are those of no text yet."""
    del target
    tap(shape, config)
    features = jnp.zeros((1, 2, config.hidden_size))
    params: Any = jax.jit(_Net(shape, config.hidden_size).init)(key, features)["params"]
    size = config.hidden_size
    return dict(params) | {"mean": jnp.zeros(size), "scale": jnp.ones(size)}


def vectors(params: Any, states: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """A text's vectors from the target's states: mean 0 and variance 1 over texts."""
    return (states.astype(jnp.float32) - params["mean"]) / params["scale"]


def denoise(
    shape: Shape,
    params: Any,
    noisy: Float[Array, "B N D"],
    believed: Float[Array, "B N D"],
    level: Int[Array, "B"],
    prompt: Side,
) -> Float[Array, "B N D"]:
    """Vectors without noise.

    Args:
        shape: sizes.
        params: of all layers.
        noisy: vectors under noise.
        believed: what was said of them before; zeros if nothing was.
        level: of the noise, from 0 to num_levels - 1.
        prompt: features of what the text is about; `seen [B, S]` says which there are.
    """
    share = level / (shape.num_levels - 1)
    return _apply(shape, params, "denoise", noisy, believed, share, *prompt)


def read(
    shape: Shape, params: Any, clean: Float[Array, "B N D"]
) -> tuple[Float[Array, "B N D"], Float[Array, "B N"]]:
    """What the target's head reads, and log-odds of a token, of every place."""
    return _apply(shape, params, "read", clean)


def absent(real: Bool[Array, "B N"], clean: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
    """The vectors with zeros where a text has no token."""
    return jnp.where(real[..., None], clean, 0.0)


def _apply(shape: Shape, params: Any, method: str, *given: Any) -> Any:
    layers = {name: part for name, part in params.items() if name not in ("mean", "scale")}
    net = _Net(shape, params["mean"].shape[0])
    return net.apply({"params": layers}, *given, method=method)
