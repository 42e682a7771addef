"""Noise schedules: their derivatives, and the bound on a law that is known."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.errors import InputError
from jaxdecode.training import schedules

KINDS = ["linear", "polynomial", "cosine", "loglinear"]


@pytest.mark.parametrize("kind", KINDS)
def test_slope_is_the_derivative_and_what_is_left_falls_from_1(kind):
    schedule = schedules.of(kind)
    with jax.enable_x64():
        t = jnp.linspace(0.01, 0.99, 50)
        found = jax.vmap(jax.grad(schedule.alpha))(t)
        np.testing.assert_allclose(found, schedule.slope(t), rtol=1e-6)
        ends = schedule.alpha(jnp.asarray([0.0, 1.0]))
        falling = np.diff(schedule.alpha(t))
    np.testing.assert_allclose(ends, [1, 1e-3 if kind == "loglinear" else 0], atol=1e-7)
    assert (falling < 0).all()


def test_linear_weight_is_one_over_the_rate():
    t = jnp.asarray([0.1, 0.5, 1.0])
    np.testing.assert_allclose(schedules.of("linear").weight(t), 1 / t, rtol=1e-6)
    # exp(-sigma) of the authors' sigma: the weight is that of the linear schedule.
    np.testing.assert_allclose(schedules.of("loglinear").weight(t), 1 / t, rtol=1e-5)


def test_step_weight_is_that_of_the_authors_code():
    schedule, num_steps = schedules.of("cosine"), 10
    t = jnp.arange(2, num_steps) / num_steps
    logsnr = [jnp.log(schedule.alpha(x) / (1 - schedule.alpha(x))) for x in (t, t - 0.1)]
    theirs = -num_steps * jnp.expm1(logsnr[0] - logsnr[1]) * schedule.alpha(t - 0.1)
    np.testing.assert_allclose(schedule.step_weight(t, num_steps), theirs, rtol=1e-4)


def twins(masked):
    """Sum of errors of the perfect model of two tokens that are equal, each of two with 1/2."""
    return 2 * math.log(2) if all(masked) else 0.0


def expected(rate):
    """Mean of `twins` where each token is masked at this rate, over all masks."""
    total = 0.0
    for masked in itertools.product([False, True], repeat=2):
        chance = np.prod([rate if m else 1 - rate for m in masked], axis=0)
        total = total + chance * twins(masked)
    return total


@pytest.mark.parametrize(("num_steps", "bound"), [(1, 1.3863), (2, 1.0397), (4, 0.8664)])
def test_bound_in_discrete_time(num_steps, bound):
    schedule = schedules.of("linear")
    t = jnp.arange(1, num_steps + 1) / num_steps
    values = schedule.step_weight(t, num_steps) * expected(1 - schedule.alpha(t))
    np.testing.assert_allclose(values.mean(), bound, atol=5e-5)
    assert float(values.mean()) == pytest.approx(math.log(2) * (1 + 1 / num_steps), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bound_in_continuous_time_is_the_same_for_every_schedule(kind):
    schedule = schedules.of(kind)
    with jax.enable_x64():
        t = (jnp.arange(100_000) + 0.5) / 100_000
        value = (schedule.weight(t) * expected(1 - schedule.alpha(t))).mean()
    assert float(value) == pytest.approx(math.log(2), rel=3e-3 if kind == "loglinear" else 1e-6)


def test_times_are_uniform_and_spread_over_the_rows():
    t = np.asarray(schedules.antithetic(jax.random.key(0), 8, 1000))
    np.testing.assert_allclose(np.diff(np.sort(t, axis=0), axis=0), 1 / 8, atol=1e-5)
    counts = np.histogram(t[0], bins=10, range=(0, 1))[0]
    assert counts.sum() == 1000 and ((counts - 100) ** 2 / 100).sum() < 27.9  # 0.1%


def test_a_schedule_that_is_none():
    with pytest.raises(InputError, match="schedule='square' is not known"):
        schedules.check("square")
