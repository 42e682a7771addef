"""Masked diffusion: the bound on a law that is known, LLaDA's normalisation, and learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.core.protocols import Models
from jaxdecode.errors import InputError
from jaxdecode.training import denoising
from jaxdecode.training.objectives import mdlm
from tests import toys
from tests.training import gate
from tests.training.test_denoising import MASK, packed, perfect, twin_rows


def estimates(num=200, rows=64, **settings):
    """Estimates of the bound on two equal tokens by the perfect model, one per batch, in nats."""
    made = mdlm.make(mdlm.Config(**settings), Models(perfect()))
    batch = twin_rows(rows)
    loss = jax.jit(lambda key: made.loss({}, {}, batch, key, gate.MOMENT)[0])
    return 2 * np.stack([loss(key) for key in jax.random.split(jax.random.key(0), num)])


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({}, np.log(2)),
        ({"schedule": "cosine"}, np.log(2)),
        ({"schedule": "polynomial"}, np.log(2)),
        ({"num_steps": 1}, 1.3863),
        ({"num_steps": 2}, 1.0397),
        ({"num_steps": 4}, 0.8664),
    ],
)
def test_bound_on_a_law_that_is_known(settings, bound):
    found = estimates(**settings)
    error = found.std() / len(found) ** 0.5
    # Continuous time begins at 0.001, which costs less than that share of the bound.
    assert abs(found.mean() - bound) < 3 * error + 1.5e-3
    if settings.get("num_steps") == 1:
        np.testing.assert_allclose(found, bound, atol=1e-4)


def by_hand(lm, batch, masked, t, config):
    """The loss in NumPy, for one time per text."""
    asked = denoising.setting(lm.bound, MASK, config.shifted, 0)
    hidden = denoising.states(asked, lm.params, batch, masked)
    scores = np.array(lm.bound.target.logits(lm.params, hidden), np.float64)
    scores[..., MASK] = -np.inf
    law = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    errors = -np.take_along_axis(law, np.asarray(batch.tokens)[..., None], -1)[..., 0]
    return np.where(masked, errors / t, 0)


def test_loss_written_out(monkeypatch):
    lm, batch = toys.model(), packed()
    batch = jax.tree.map(lambda x: x[1:], batch)
    masked = jnp.asarray([[False] * 3 + [True, False, True, True, False, False, True]])
    monkeypatch.setattr(denoising, "drawn", lambda key, rate, weight: masked & (weight > 0))
    seen = {}

    def antithetic(key, rows, num):
        seen["t"] = np.full((rows, num), 0.37, np.float32)
        return jnp.asarray(seen["t"])

    monkeypatch.setattr(mdlm.schedules, "antithetic", antithetic)
    config = mdlm.Config(mask_token=MASK)
    made = mdlm.make(config, Models(lm.bound))
    found, metrics = jax.jit(made.loss)(lm.params, {}, batch, jax.random.key(2), gate.MOMENT)
    t = 1e-3 + (1 - 1e-3) * seen["t"][0, 0]
    values = by_hand(lm, batch, np.asarray(masked), t, config)
    assert float(found) == pytest.approx(values.sum() / 7, rel=1e-4)
    assert float(metrics["masked"]) == pytest.approx(4 / 7)


def test_answers_weigh_alike_by_their_own_length():
    values = jnp.asarray([[1.0, 1, 1, 1, 1, 4, 4, 4, 0, 0], [0, 0, 0, 2, 2, 2, 2, 2, 2, 2]])
    batch = packed()
    # Texts of 5, 3 and 7 learned tokens.
    assert float(denoising.per_text(values, batch, batch.weight)) == pytest.approx((1 + 4 + 2) / 3)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_text_is_learned_and_the_target_has_no_gradient(shifted):
    batch = gate.batch([gate.PROMPT * 2], prompt=4)
    settings = {"mask_token": MASK, "shifted": shifted}
    assert gate.learns_alone("mdlm", batch, **settings)
    lm = toys.model()
    made, _ = gate.objective("mdlm", **settings)
    params, values = gate.train(made, lm, batch, steps=150, lr=1e-2)
    assert values[-30:].mean() < 0.5 * values[:30].mean()
    made_of = made.export(params, lm.params)
    assert made_of.denoiser.mask_token == MASK and made_of.denoiser.shifted == shifted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "x"}, "schedule='x' is not known"),
        ({"times": (0.5, 0.2)}, "give 0 < first < last <= 1"),
        ({"per": "row"}, "per='row' is not known"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"mask_token": -1}, "mask_token=-1"),
        ({"power": 0.0}, "power=0.0"),
    ],
)
def test_settings_that_cannot_be_used(settings, message):
    with pytest.raises(InputError, match=message):
        mdlm.Config(**settings)
