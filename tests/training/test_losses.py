"""Sums whose gradient is computed along with them: those of plain automatic differentiation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.training import losses

BATCH, WIDTH, DEPTH, VOCAB, HEADS = 2, 150, 8, 12, 3


def per_token(params, rows, given):
    scores = jnp.tanh(rows) @ params["kernel"] + params["bias"]
    return losses.cross_entropy(scores, given), scores.argmax(-1) == given


def case():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"kernel": jax.random.normal(keys[0], (DEPTH, VOCAB)), "bias": jnp.zeros(VOCAB)}
    rows = jax.random.normal(keys[1], (BATCH, WIDTH, HEADS, DEPTH))
    given = jax.random.randint(keys[2], (BATCH, WIDTH, HEADS), 0, VOCAB)
    weight = jax.random.uniform(keys[3], (BATCH, WIDTH, HEADS))
    return params, rows, given, losses.shares(weight)


def plain(params, rows, given, weight):
    errors, hits = losses.over_tokens(functools.partial(per_token, params), rows, given)
    return (errors * weight).sum(), hits


def at_once(params, rows, given, weight):
    return losses.summed(per_token, params, rows, given, weight)


@pytest.mark.parametrize("wrapped", [lambda f: f, jax.checkpoint], ids=["as it is", "remat"])
def test_value_gradient_and_what_is_told(wrapped):
    *learned, given, weight = case()

    def measured(law):
        def twice(params, rows):
            # What comes out is scaled, and what goes in depends on what is learned.
            value, told = wrapped(law)(params, jnp.sin(rows), given, weight)
            return 2 * value**2, (value, told)

        return jax.jit(jax.value_and_grad(twice, argnums=(0, 1), has_aux=True))(*learned)

    ours, theirs = measured(at_once), measured(plain)
    assert int(ours[0][1][1].sum()) > 0
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_shares_are_those_of_a_mean():
    *_, weight = case()
    np.testing.assert_allclose(losses.shares(weight).sum((0, 1)), np.ones(HEADS), rtol=1e-5)
    assert not losses.shares(jnp.zeros((1, 2, 3))).any()
