"""Autoregressive weights that learn to fill blocks: complementary views, and slanted rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.errors import InputError
from jaxdecode.training import denoising
from jaxdecode.training.objectives import efficient_dlm, fast_dllm_v2
from tests.training import gate
from tests.training.test_denoising import MASK, packed


def test_two_views_hold_every_learned_token_once():
    config, batch = fast_dllm_v2.Config(mask_token=MASK, block=4), packed()
    weight = denoising.learned(batch, True)
    draw = jax.vmap(lambda key: jnp.stack(fast_dllm_v2.views(config, batch, weight, key)))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 100)))
    np.testing.assert_array_equal(
        found.sum(1), np.broadcast_to(np.asarray(weight) > 0, found[:, 0].shape)
    )
    # Both are drawn.
    assert found[:, 0, :, 3:5].mean() == pytest.approx(0.5, abs=0.1)


def test_first_rates_by_hand():
    found = efficient_dlm.rates(jnp.asarray(0.25), 32, 0.1)
    np.testing.assert_allclose([found[0], found[-1]], [0.062, 0.636], atol=1e-3)
    # Without clipping the last would be 1.076 where t is 0.75.
    later = np.asarray(efficient_dlm.rates(jnp.asarray(0.75), 32, 0.1))
    assert later[-1] == 1 and later.sum() == pytest.approx(24, rel=1e-5)


@pytest.mark.parametrize("slant", [0.0, 0.02, 0.1, 1.0])
def test_rates_sum_to_what_time_says(slant):
    t = jnp.linspace(0.001, 1, 200)
    found = np.asarray(efficient_dlm.rates(t, 32, slant))
    np.testing.assert_allclose(found.sum(-1), 32 * np.asarray(t), rtol=2e-4)
    assert (found >= 0).all() and (found <= 1).all() and (np.diff(found, axis=-1) >= -1e-6).all()
    np.testing.assert_allclose(found[-1], 1, atol=1e-5)
    if not slant:
        np.testing.assert_allclose(found, np.broadcast_to(t[:, None], found.shape), rtol=1e-5)


@pytest.mark.parametrize("t", [0.25, 0.75])
def test_number_of_masked_tokens(t):
    rate = efficient_dlm.rates(jnp.full(10_000, t), 16, 0.3)
    counts = denoising.drawn(jax.random.key(0), rate, jnp.ones(rate.shape)).sum(-1)
    error = float(counts.std()) / 100
    assert abs(float(counts.mean()) - 16 * t) < 3.5 * error


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("fast_dllm_v2", {}),
        ("efficient_dlm", {}),
        ("efficient_dlm", {"weighting": "inverse"}),
    ],
)
def test_a_text_is_learned_and_the_target_has_no_gradient(recipe, settings):
    batch = gate.batch([gate.PROMPT * 2], prompt=4)
    settings = {"mask_token": MASK, "block": 4} | settings
    assert gate.learns_alone(recipe, batch, **settings)
    made, _ = gate.objective(recipe, **settings)
    params, values = gate.train(made, gate.toys.model(), batch, steps=100, lr=1e-2)
    assert values[-20:].mean() < 0.4 * values[:20].mean()
    found = made.export(params, gate.toys.model().params).denoiser
    assert (found.block, found.shifted) == (4, recipe == "fast_dllm_v2")


def test_settings_that_cannot_be_used():
    with pytest.raises(InputError, match="weighting='no' is not known"):
        efficient_dlm.Config(weighting="no")
    with pytest.raises(InputError, match="slant=-1"):
        efficient_dlm.Config(slant=-1)
