"""How much noise: schedules of continuous diffusion, and the levels that NeoDiff draws.

A vector x without noise becomes, at a level whose signal is a,

    sqrt(a) x + sqrt(1 - a) scale * eps
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Times and quantiles that the table of levels has.
NUM_TIMES, NUM_QUANTILES = 101, 64
# From here on nothing is left of a text in training: decoding begins there.
LAST = 0.99


def root(share: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Signal of the square-root schedule, 1 - sqrt(share + 0.0001), for a share from 0 to 1.

    It falls from 0.99 to 0 (arXiv:2205.14217 appendix A); the end is kept above 0.
    """
    return jnp.maximum(1 - jnp.sqrt(share + 1e-4), 1e-8)


def diffuse(
    clean: Float[Array, "*B D"], noise: Float[Array, "*B D"], signal: Float[Array, "*B"]
) -> Float[Array, "*B D"]:
    """Vectors under noise; the noise is already as large as it is at the last level."""
    signal = signal[..., None]
    return jnp.sqrt(signal) * clean + jnp.sqrt(1 - signal) * noise


def rate(time: Array, num_levels: int) -> Array:
    """Mean of the levels at a time from 0 to 1, before they are cut: twice the last level."""
    return 2.0 * (num_levels - 1) * time


def spread_out(count: Array, time: Array, num_levels: int, spread: float) -> Array:
    """Levels of Poisson counts with the rate of a time, rounded and cut.

    Their mean is the rate and their standard deviation `spread` times the rate, before the cut.
    """
    mean = rate(time, num_levels)
    scaled = (count - mean) / jnp.sqrt(jnp.maximum(mean, 1e-8)) * (spread * mean) + mean
    return jnp.clip(jnp.round(scaled), 0, num_levels - 1)


def draw_levels(
    key: Array, time: Float[Array, "*B"], num_levels: int, spread: float
) -> Float[Array, "*B"]:
    """A level for every place, by itself; all are the last one at the end of time."""
    count = jax.random.poisson(key, rate(time, num_levels)).astype(jnp.float32)
    levels = spread_out(count, time, num_levels, spread)
    return jnp.where(time > LAST, num_levels - 1.0, levels)


def level_at(
    time: Float[Array, "*B"], quantile: Float[Array, "*B"], num_levels: int, spread: float
) -> Float[Array, "*B"]:
    """The level below which a share of those that are drawn at a time lies, by a table."""
    place = jnp.round(time * (NUM_TIMES - 1)).astype(jnp.int32)
    column = jnp.clip(jnp.floor(quantile * NUM_QUANTILES), 0, NUM_QUANTILES - 1)
    count = jnp.asarray(_counts(num_levels))[place, column.astype(jnp.int32)]
    levels = spread_out(count, place / (NUM_TIMES - 1), num_levels, spread)
    return jnp.where(time > LAST, num_levels - 1.0, levels)


@functools.lru_cache
def _counts(num_levels: int) -> Int[np.ndarray, "T Q"]:
    """Poisson quantiles: the smallest count whose cumulative probability is at least q."""
    rates = 2.0 * (num_levels - 1) * np.linspace(0, 1, NUM_TIMES)
    top = int(rates[-1] + 10 * np.sqrt(rates[-1])) + 10
    count = np.arange(top)
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, top)))])
    with np.errstate(divide="ignore", invalid="ignore"):
        power = np.where(count == 0, 0.0, count * np.log(rates[:, None]))
        law = np.exp(power - rates[:, None] - factorial)
    below = np.cumsum(law, axis=1)
    middles = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    return (below[:, None, :] < middles[:, None]).sum(-1).astype(np.float32)


def tangent(time: Float[Array, "*B"], hardness: float) -> Float[Array, "*B"]:
    """Signal 1 / (1 + d^2 tan^2(pi t / 2)) at a time from 0 to 1: 1 at first, 0 at last.

    d = 1 is the cosine schedule; a larger one has more noise in the middle.
    """
    slope = jnp.tan(jnp.clip(time, 0.0, 1.0 - 1e-6) * jnp.pi / 2)
    return 1 / (1 + jnp.square(hardness * slope))


def step_back(
    noisy: Float[Array, "*B D"],
    clean: Float[Array, "*B D"],
    noise: Float[Array, "*B D"],
    now: Float[Array, ""],
    after: Float[Array, ""],
    fresh: float,
) -> Float[Array, "*B D"]:
    """Vectors at the next signal, from those at this one and what they are said to be.

    Args:
        noisy: vectors under noise of variance 1 - `now`.
        clean: what they are said to be without.
        noise: normal, of variance 1.
        now: signal of the vectors.
        after: signal to go to, at least `now`.
        fresh: 0 keeps the noise that there is (DDIM, arXiv:2010.02502), 1 renews it as the
            reversed diffusion does (DDPM).
    """
    left = jnp.maximum(1 - now, 1e-8)
    old = (noisy - jnp.sqrt(now) * clean) / jnp.sqrt(left)
    renewed = fresh * jnp.sqrt((1 - after) / left * jnp.maximum(1 - now / after, 0.0))
    kept = jnp.sqrt(jnp.maximum(1 - after - jnp.square(renewed), 0.0))
    return jnp.sqrt(after) * clean + kept * old + renewed * noise


@functools.lru_cache
def linear(num_levels: int) -> Float[np.ndarray, "L"]:
    """Signals of levels 0, 1, ... whose noise grows evenly from 0.0001 to 0.02 (DDPM).

    Level 0 has no noise; at level 999 of 1000 a signal of 0.00004 is left. With another number of
    levels each is as many times stronger, so that as little is left.
    """
    strength = 1000 / num_levels
    betas = np.concatenate([[0.0], np.linspace(1e-4, 2e-2, num_levels)])[:-1] * strength
    return np.cumprod(1 - np.minimum(betas, 0.999)).astype(np.float32)
