"""LaDiC: the vectors of a caption are denoised at once, and its worst places once again.

A step says all vectors without noise, with guidance away from what would be said about nothing, and
puts them under fresh noise of the next level. Half way the text is read once: a third of its
places, those whose tokens are least sure, become pure noise, and the levels start again from the
top beside the others (Back&Refine). Behind the last step the reader says the tokens and where they
end.

Exactness: L3. It begins with noise, so another seed is another text even at temperature 0, which
is about the rounding to tokens, as are the other options of sampling.

Cost: one pass of the target over the prompt; `steps` passes of the denoiser over `max_length`
places, twice as many with guidance, and about half as many again with `refine`.
Source: arXiv:2404.10763 and the authors' code; differs: the first noise is as strong as in
training, and repeated tokens are left in the text, for taking them out would hide mistakes.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdecode import checks
from jaxdecode.continuous import schedules
from jaxdecode.continuous.loop import Continuous, length_of, prompt_states
from jaxdecode.core.protocols import Models
from jaxdecode.core.types import pytree
from jaxdecode.heads import cosmos
from jaxdecode.heads import ladic as net
from jaxdecode.models.bidirectional import Side

# Levels, of 1000, between which the text is refined.
_MIDDLE = 0.3, 0.6
# The network is told a level somewhat later than it is, of 1000.
_LATER = 0.005


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        steps: levels of noise that are visited on the way down.
        guidance: how far what is said is moved away from what is said about nothing; 0 does
            without, and with half the passes.
        refine: whether the least sure third of the places is said again.
    """

    steps: int = 33
    guidance: float = 1.0
    refine: bool = True

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("steps", self.steps, low=1)
        checks.number("guidance", self.guidance, "at least 0", lambda x: x >= 0)
        checks.flag("refine", self.refine)


@pytree
class State:
    """Texts under noise.

    Attributes:
        noisy: vectors.
        clean: what was said of them last.
    """

    noisy: Float[Array, "B N D"]
    clean: Float[Array, "B N D"]


@pytree
class Memory:
    """Prompts.

    Attributes:
        features: of their tokens.
        real: which there are.
    """

    features: Float[Array, "B S D"]
    real: Bool[Array, "B S"]


class Visits(NamedTuple):
    """What the steps do.

    Attributes:
        level: of the noise before each.
        after: level of the noise that is added.
        refines: whether the least sure places become pure noise.
    """

    level: np.ndarray
    after: np.ndarray
    refines: np.ndarray


def visits(config: Config, num_levels: int) -> Visits:
    """The steps from the last level down to below the stride, once with a new start half way."""
    stride = max(num_levels // config.steps, 1)
    low, high = (part * num_levels for part in _MIDDLE)
    level, waits, found = num_levels - 1, config.refine, []
    while level > 0:
        refines = waits and low < level < high
        found.append((level, max(level - stride, 0), refines))
        if refines:
            level, waits = num_levels - 1, False
        level -= stride
    return Visits(*(np.asarray(column) for column in zip(*found, strict=True)))


def make(config: Config, models: Models) -> Continuous:
    """The bundle."""
    assert models.heads is not None
    shape: net.Shape = models.heads.shape
    model, plan = models.target, visits(config, shape.num_levels)
    level, after, refines = map(jnp.asarray, plan)
    signals = jnp.asarray(schedules.linear(shape.num_levels))

    def encode(weights, source):
        hidden = prompt_states(model, weights, source)
        return Memory(features=cosmos.features(hidden), real=source.real)

    def begin(noise):
        return State(noisy=shape.noise_scale * noise, clean=jnp.zeros_like(noise))

    def read_scores(weights, clean):
        code, exists = net.read(shape, weights.heads, clean)
        return model.target.logits(weights.target, code).astype(jnp.float32), exists

    def step(weights, memory, lengths, state, index, noise):
        del lengths
        last = shape.num_levels - 1
        told = jnp.minimum(level[index] + int(_LATER * shape.num_levels), last)
        clean = _said(config, shape, weights.heads, memory, state, told)
        noise = shape.noise_scale * noise
        signal = jnp.full(clean.shape[:2], signals[after[index]])
        noisy = schedules.diffuse(clean, noise, signal)
        if config.refine:
            none = jnp.zeros(clean.shape[:2], bool)
            again = jax.lax.cond(
                refines[index], lambda: least_sure(*read_scores(weights, clean)), lambda: none
            )
            noisy = jnp.where(again[..., None], noise, noisy)
        return State(noisy=noisy, clean=clean)

    def read(weights, memory, lengths, state, width):
        del memory, lengths
        scores, exists = read_scores(weights, state.clean)
        return scores[:, :width], length_of(exists)

    return Continuous(
        num_steps=len(plan.level),
        calls=2 if config.guidance else 1,
        size=model.config.hidden_size,
        max_length=shape.max_length,
        extent=lambda width: shape.max_length,
        encode=encode,
        lengths=None,
        begin=begin,
        step=step,
        read=read,
    )


def _said(
    config: Config, shape: net.Shape, params: Any, memory: Memory, state: State, told: Array
) -> Float[Array, "B N D"]:
    """What is said of the vectors, moved away from what would be said about nothing."""
    places = jnp.broadcast_to(jnp.arange(memory.real.shape[1]), memory.real.shape)
    level = jnp.full(len(places), told)

    def about(features):
        side = Side(features, places, memory.real)
        return net.denoise(shape, params, state.noisy, state.clean, level, side)

    clean = about(memory.features)
    if not config.guidance:
        return clean
    return clean + config.guidance * (clean - about(jnp.zeros_like(memory.features)))


def least_sure(scores: Float[Array, "B N V"], exists: Float[Array, "B N"]) -> Bool[Array, "B N"]:
    """The third of the places of which the reader is least sure; earlier places if as sure.

    How sure it is of a place is the chance of what it would put there: a token, or nothing.
    """
    there = jax.nn.sigmoid(exists)
    sure = jnp.maximum(there * jax.nn.softmax(scores).max(-1), 1 - there)
    rank = jnp.argsort(jnp.argsort(sure, axis=1, stable=True), axis=1)
    return rank < sure.shape[1] // 3
