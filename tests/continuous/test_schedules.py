"""How much noise: ends of the schedules, and the law of the levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdecode.continuous import schedules

LEVELS = 100


def test_the_root_schedule_begins_and_ends_where_it_should():
    signal = np.asarray(schedules.root(jnp.linspace(0, 1, LEVELS)))
    np.testing.assert_allclose(signal[0], 0.99, atol=1e-6)
    np.testing.assert_allclose(signal[25], 1 - np.sqrt(25 / 99 + 1e-4), atol=1e-6)
    assert 0 < signal[-1] < 1e-3 and (np.diff(signal) < 0).all()


def test_vectors_keep_their_variance_under_noise_as_large_as_themselves():
    clean, noise = jax.random.normal(jax.random.key(0), (2, 20_000, 1))
    for share in (0.0, 0.3, 1.0):
        signal = schedules.root(jnp.full(20_000, share))
        assert abs(float(schedules.diffuse(clean, noise, signal).var()) - 1) < 0.05


@pytest.mark.parametrize("time", [0.05, 0.2])
def test_poisson_levels_have_the_mean_and_spread_that_are_said(time):
    """Before the cut: with a spread of 0.2 it is far from both times' levels."""
    times = jnp.full(10_000, time)
    levels = np.asarray(schedules.draw_levels(jax.random.key(0), times, LEVELS, 0.2))
    mean = 2 * 99 * time
    assert abs(levels.mean() - mean) < 0.03 * mean + 0.1
    assert abs(levels.std() - 0.2 * mean) < 0.03 * mean + 0.1


def test_levels_are_cut_and_all_are_the_last_at_the_end_of_time():
    times = jnp.repeat(jnp.asarray([0.0, 0.5, 0.995]), 1000)
    levels = schedules.draw_levels(jax.random.key(0), times, LEVELS, 1.0)
    begin, middle, end = np.asarray(levels).reshape(3, -1)
    assert (begin == 0).all() and (end == 99).all()
    assert middle.min() == 0 and middle.max() == 99


def test_without_spread_it_is_one_clock_for_all_tokens():
    """Ordinary continuous diffusion: the level is a function of the time."""
    times = jnp.linspace(0, 1, 64)
    levels = schedules.draw_levels(jax.random.key(0), times, LEVELS, 0.0)
    np.testing.assert_array_equal(levels, np.minimum(np.round(198 * np.asarray(times)), 99))


def test_levels_at_a_quantile_are_those_of_the_poisson_law():
    time = 0.25
    quantiles = (np.arange(64) + 0.5) / 64
    found = schedules.level_at(jnp.full(64, time), jnp.asarray(quantiles), LEVELS, 0.2)
    mean = 2 * 99 * time
    count = stats.poisson.ppf(quantiles, mean)
    wanted = np.clip(np.round((count - mean) / np.sqrt(mean) * 0.2 * mean + mean), 0, 99)
    np.testing.assert_allclose(found, wanted, atol=1)
    drawn = schedules.draw_levels(jax.random.key(0), jnp.full(6_400, time), LEVELS, 0.2)
    np.testing.assert_allclose(found, np.quantile(np.asarray(drawn), quantiles), atol=2.5)
