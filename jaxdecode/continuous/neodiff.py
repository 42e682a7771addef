"""NeoDiff: every token's vector has a noise level of its own, which a predictor chooses.

A step says all vectors without noise, from those under noise, from what was said in the step before
and from the prompt. The predictor says which level each should have at the next time, and they are
put under fresh noise of that level: easy tokens settle early, and hard ones are said again beside
them. After the last step the scores of what was said become tokens.

Exactness: L3. It begins with noise, so another seed is another text even at temperature 0, which
is about the rounding to tokens, as are the other options of sampling. `levels="same"` gives all
tokens the mean level of the time: plain continuous diffusion, with one clock.

Cost: one pass of the prompt, then `steps` passes of denoiser and predictor over the whole text.
Source: arXiv:2505.22165 and the authors' code; differs: times are spread evenly in place of ones
that were searched for by the quality of the text, and there are no beams over lengths.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.continuous import schedules
from jaxdecode.continuous.loop import Continuous
from jaxdecode.core.protocols import Models
from jaxdecode.core.types import pytree
from jaxdecode.heads import neodiff as net
from jaxdecode.models.bidirectional import Side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        steps: passes of the denoiser.
        levels: "own": each token has the level that the predictor says; "same": all have the mean
            level of the time.
        clamp: round what was said to the nearest token's vector before noise is added again.
    """

    steps: int = 20
    levels: Literal["own", "same"] = "own"
    clamp: bool = False

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("steps", self.steps, low=1)
        checks.choice("levels", self.levels, ("own", "same"))
        checks.flag("clamp", self.clamp)


@pytree
class State:
    """Texts under noise.

    Attributes:
        noisy: vectors.
        level: of the noise of each.
        clean: what was said of them last, without noise.
    """

    noisy: Float[Array, "B N D"]
    level: Float[Array, "B N"]
    clean: Float[Array, "B N D"]


@pytree
class Memory:
    """What steps read beside the vectors.

    Attributes:
        states: of the prompt's tokens.
        real: which there are.
        vectors: of all tokens of the vocabulary.
    """

    states: Float[Array, "B S W"]
    real: Any
    vectors: Float[Array, "V D"]


def make(config: Config, models: Models) -> Continuous:
    """The bundle."""
    assert models.heads is not None
    shape: net.Shape = models.heads.shape
    last = shape.num_levels - 1.0

    def encode(weights, source):
        places = _places(source.tokens)
        seen = source.real[:, None, :] & source.real[:, :, None]
        states = net.encode(shape, weights.heads, source.tokens, places, seen)
        return Memory(states=states, real=source.real, vectors=net.table(shape, weights.heads))

    def lengths(weights, memory):
        return net.lengths(shape, weights.heads, memory.states[:, 0])

    def begin(noise):
        level = jnp.full(noise.shape[:2], last)
        return State(noisy=shape.noise_scale * noise, level=level, clean=jnp.zeros_like(noise))

    def step(weights, memory, lengths, state, index, noise):
        own, beside = _sides(memory, state.noisy, lengths)
        clean = net.denoise(shape, weights.heads, own, state.clean, state.level, beside)
        if config.clamp:
            near = net.scores(shape, memory.vectors, clean).argmax(-1)
            clean = memory.vectors[near]
        time = jnp.full(clean.shape[:2], 1 - (index + 1) / config.steps)
        if config.levels == "own":
            level = net.levels(shape, weights.heads, own._replace(x=clean), time, beside)
        else:
            level = schedules.rate(time, shape.num_levels)
        level = jnp.clip(jnp.round(level), 0, last)
        signal = schedules.root(level / last)
        noisy = schedules.diffuse(clean, shape.noise_scale * noise, signal)
        return State(noisy=noisy, level=level, clean=clean)

    def read(weights, memory, lengths, state, width):
        del weights, width
        return net.scores(shape, memory.vectors, state.clean), lengths

    return Continuous(
        num_steps=config.steps,
        calls=1,
        size=shape.latent_size,
        max_length=shape.max_length,
        extent=lambda width: width,
        encode=encode,
        lengths=lengths,
        begin=begin,
        step=step,
        read=read,
    )


def _places(array: Array) -> Array:
    return jnp.broadcast_to(jnp.arange(array.shape[1], dtype=jnp.int32), array.shape[:2])


def _sides(memory: Memory, noisy: Array, lengths: Array) -> tuple[Side, Side]:
    """Who sees whom: the tokens of a text each other, and all its prompt."""
    places = _places(noisy)
    real = places < lengths[:, None]
    own = Side(noisy, places, real[:, None, :] & real[:, :, None])
    across = real[:, :, None] & memory.real[:, None, :]
    return own, Side(memory.states, _places(memory.states), across)
