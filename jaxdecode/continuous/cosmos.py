"""Cosmos: a few vectors stand for a whole text, and diffusion works on these.

A step says all vectors without noise, from those under noise, from what was said in the step before
and from the target's states of the prompt, and moves them to the next time. After the last one the
coder says the text in one go, and where it ends; what the coder gets wrong is final.

Exactness: L3. It begins with noise, so another seed is another text even at temperature 0, which
is about the rounding to tokens, as are the other options of sampling.

Cost: one pass of the target over the prompt, `steps` passes of the denoiser over `num_latents`
vectors however long the text is, and one pass of coder and target's head over the text.
Source: arXiv:2506.21170; the abstract and a summary were read, so schedule, weights and sizes are
ours.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdecode import checks
from jaxdecode.continuous import schedules
from jaxdecode.continuous.loop import Continuous, Source, length_of, prompt_states
from jaxdecode.core.protocols import Models
from jaxdecode.core.types import pytree
from jaxdecode.heads import cosmos as net
from jaxdecode.models.bidirectional import Side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        steps: passes of the denoiser.
        fresh: part of the noise that a step renews: 0 none of it, 1 as the reversed diffusion.
    """

    steps: int = 100
    fresh: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("steps", self.steps, low=1)
        checks.number("fresh", self.fresh, "from 0 to 1", lambda x: 0 <= x <= 1)


@pytree
class State:
    """Texts under noise.

    Attributes:
        noisy: their vectors, scaled.
        clean: what was said of them last.
    """

    noisy: Float[Array, "B N d"]
    clean: Float[Array, "B N d"]


@pytree
class Memory:
    """Prompts.

    Attributes:
        states: features of their tokens.
        real: which there are.
    """

    states: Float[Array, "B S D"]
    real: Bool[Array, "B S"]


def make(config: Config, models: Models) -> Continuous:
    """The bundle."""
    assert models.heads is not None
    shape: net.Shape = models.heads.shape
    model = models.target

    def encode(weights: Any, source: Source) -> Memory:
        hidden = prompt_states(model, weights, source)
        return Memory(states=net.features(hidden), real=source.real)

    def begin(noise):
        return State(noisy=noise, clean=jnp.zeros_like(noise))

    def step(weights, memory, lengths, state, index, noise):
        del lengths
        time, after = 1 - index / config.steps, 1 - (index + 1) / config.steps
        places = jnp.broadcast_to(jnp.arange(memory.real.shape[1]), memory.real.shape)
        clean = net.denoise(
            shape,
            weights.heads,
            state.noisy,
            state.clean,
            jnp.full(noise.shape[0], time, jnp.float32),
            Side(memory.states, places, memory.real),
        )
        signals = (schedules.tangent(t, shape.hardness) for t in (time, after))
        noisy = schedules.step_back(state.noisy, clean, noise, *signals, fresh=config.fresh)
        return State(noisy=noisy, clean=clean)

    def read(weights, memory, lengths, state, width):
        del memory, lengths
        latents = net.unscaled(shape, weights.heads, state.clean)
        _, code, exists = net.expand(shape, weights.heads, latents, width)
        scores = model.target.logits(weights.target, code)
        return scores, length_of(exists)

    return Continuous(
        num_steps=config.steps,
        calls=1,
        size=shape.latent_size,
        extent=lambda width: shape.num_latents,
        max_length=shape.max_length,
        encode=encode,
        lengths=None,
        begin=begin,
        step=step,
        read=read,
    )
