"""Block diffusion: one block is masked diffusion, blocks of one token are autoregression."""

import jax
import numpy as np
import pytest

from jaxdecode.core.protocols import Models
from jaxdecode.training import denoising
from jaxdecode.training.objectives import bd3, mdlm, next_token
from tests import toys
from tests.training import gate
from tests.training.test_denoising import MASK, ROW, packed


def value(module, batch, lm=None, **settings):
    lm = lm or toys.model()
    made = module.make(module.Config(**settings), Models(lm.bound))
    return float(jax.jit(made.loss)(lm.params, {}, batch, jax.random.key(3), gate.MOMENT)[0])


def test_blocks_of_one_token_are_the_likelihood_of_autoregressive_weights():
    batch = gate.batch([ROW, ROW[::-1]])
    # All is masked: one step of discrete time.
    found = value(bd3, batch, mask_token=MASK, block=1, shifted=True, num_steps=1)
    lm = toys.model()
    total = 0.0
    for row in (ROW, ROW[::-1]):
        scores, _ = toys.full_logits(lm, row)
        scores = np.array(scores, np.float64)
        scores[:, MASK] = -np.inf
        law = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        total -= sum(law[i, token] for i, token in enumerate(row[1:]))
    assert found == pytest.approx(total / 22, rel=1e-5)
    # The mask token, which is one of the vocabulary, has next to no weight there.
    assert value(next_token, batch) == pytest.approx(found, rel=0.1)


def test_one_block_is_masked_diffusion():
    batch = packed()
    settings = {"mask_token": MASK, "schedule": "cosine"}
    wanted = value(mdlm, batch, **settings)
    assert value(bd3, batch, block=64, **settings) == pytest.approx(wanted, rel=1e-5)


def test_every_block_has_its_own_rate_within_the_range(monkeypatch):
    rates = []

    # What follows needs no model.
    monkeypatch.setattr(denoising, "states", lambda asked, params, batch, masked: None)
    monkeypatch.setattr(denoising, "read", lambda *args: (jax.numpy.ones((8, 12)), args[3] > 0))

    def drawn(key, rate, weight):
        rates.append(np.asarray(rate))
        return jax.random.uniform(key, rate.shape) < rate

    monkeypatch.setattr(denoising, "drawn", drawn)
    batch = gate.batch([ROW] * 8)
    made = bd3.make(
        bd3.Config(mask_token=MASK, block=4, times=(0.3, 0.8)), Models(toys.model().bound)
    )
    made.loss(toys.model().params, {}, batch, jax.random.key(0), gate.MOMENT)
    blocks = rates[0].reshape(8, 3, 4)
    assert (blocks == blocks[..., :1]).all()
    assert len(np.unique(blocks)) == 24 and blocks.min() >= 0.3 and blocks.max() <= 0.8
    # Held-out texts: all times.
    made.judge(toys.model().params, {}, batch, jax.random.key(0), gate.MOMENT)
    assert rates[1].min() < 0.3 and rates[1].max() > 0.8


def test_a_text_is_learned_and_the_target_has_no_gradient():
    batch = gate.batch([gate.PROMPT * 2], prompt=4)
    settings = {"mask_token": MASK, "block": 4}
    assert gate.learns_alone("bd3", batch, **settings)
    made, _ = gate.objective("bd3", **settings)
    params, values = gate.train(made, toys.model(), batch, steps=150, lr=1e-2)
    assert values[-20:].mean() < 0.3 * values[:20].mean()
    assert made.export(params, toys.model().params).denoiser.block == 4
