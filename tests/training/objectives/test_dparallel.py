"""Certainty: the block that is drawn, the entropy written out, and its gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.core.protocols import Models
from jaxdecode.errors import InputError
from jaxdecode.training import denoising
from jaxdecode.training.objectives import dparallel
from tests import toys
from tests.training import gate
from tests.training.test_denoising import MASK, packed


def test_the_block_and_what_follows_it():
    batch = packed()
    draw = jax.vmap(lambda key: jnp.stack(dparallel.span(batch, 2, batch.weight, key)))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 200)))
    starts = set()
    for learns, behind in found:
        # The second row: a prompt of 3, then 7 tokens.
        places = np.flatnonzero(learns[1])
        starts.add(int(places[0]))
        np.testing.assert_array_equal(places, np.arange(places[0], min(places[0] + 2, 10)))
        np.testing.assert_array_equal(np.flatnonzero(behind[1]), np.arange(places[-1] + 1, 10))
        # Both texts of the first row have a block of their own; padding has none.
        assert learns[0, :5].any() and learns[0, 5:8].any()
        assert not (learns | behind)[0, 8:].any()
    assert starts == {3, 5, 7, 9}


def test_entropy_of_right_tokens_only_and_no_gradient_through_the_gate():
    lm = toys.model()
    asked = denoising.setting(lm.bound, MASK, False, 0)
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=(1, 6, lm.config.vocab_size)), jnp.float32)
    flat = asked._replace(
        model=asked.model._replace(
            target=asked.model.target._replace(logits=lambda params, hidden: hidden)
        )
    )
    best = scores.at[..., MASK].set(-jnp.inf).argmax(-1)
    tokens = jnp.where(jnp.asarray([True, True, False, True, False, False]), best, 1)
    masked = jnp.asarray([[True, False, True, True, True, True]])

    @jax.jit
    def entropy(scores):
        out = denoising.read(flat, {}, scores, tokens, 0.5)
        return dparallel.certainty(out, masked)[1]

    def written(scores, right):
        law = jax.nn.softmax(scores.at[..., MASK].set(-1e9) / 0.5)
        values = -(law * jnp.log(jnp.maximum(law, 1e-30))).sum(-1)
        return (values * right).sum() / right.sum()

    right = (tokens == best) & masked
    assert 0 < right.sum() < masked.sum()
    assert float(entropy(scores)) == pytest.approx(float(written(scores, right)), rel=1e-4)
    # Where the gate is shut nothing flows, and it is a constant where it is open.
    found = jax.jit(jax.grad(entropy))(scores)
    wanted = jax.jit(jax.grad(written))(scores, right)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not np.asarray(found)[~np.asarray(right)].any()


def test_it_gets_surer_and_the_target_has_no_gradient():
    batch = gate.batch([gate.PROMPT * 2], prompt=4)
    settings = {"mask_token": MASK, "block": 4, "force": 0.5}
    assert gate.learns_alone("dparallel", batch, **settings)
    lm = toys.denoiser()
    made = dparallel.make(dparallel.Config(block=4), Models(lm.bound))
    _, values = gate.train(made, lm, batch, steps=100, lr=1e-2)
    assert values[-20:].mean() < 0.6 * values[:20].mean()


def test_settings_that_cannot_be_used():
    for settings in ({"force": -1.0}, {"temperature": 0.0}, {"block": 0}):
        with pytest.raises(InputError, match=next(iter(settings))):
            dparallel.Config(**settings)
