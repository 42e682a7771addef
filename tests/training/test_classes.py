"""A part of the vocabulary: which tokens it has; its normaliser is that of all on average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.errors import InputError
from jaxdecode.training import classes, losses
from tests import toys
from tests.training import gate

TOKENS = jnp.asarray([[3, 9, 9, 50]])


def drawn(key, num=12):
    lm = toys.model()
    return classes.draw(lm.config, lm.params, TOKENS, jax.random.key(key), num)


def test_tokens_of_the_batch_are_there_and_stand_for_themselves():
    lm, found = toys.model(), drawn(0)
    table = np.asarray(lm.params["head"]["kernel"])
    rows, bias = np.asarray(found.params["head"]["kernel"]), np.asarray(found.bias)
    for token in (3, 9, 50):
        column = int(found.column[token])
        np.testing.assert_array_equal(rows[column], table[token])
        assert bias[column] == 0
    # The nine others stand for all the rest.
    rest = np.delete(bias, [int(found.column[token]) for token in (3, 9, 50)])
    np.testing.assert_allclose(np.exp(rest), (lm.config.vocab_size - 3) / 9, rtol=1e-5)


def test_the_normaliser_is_that_of_all_tokens_on_average():
    lm = toys.model()
    state = jax.random.normal(jax.random.key(5), (lm.config.hidden_size,))
    full = jnp.exp(lm.target.logits(lm.params, state)).sum()

    def one(key):
        part = classes.draw(lm.config, lm.params, TOKENS, key, 12)
        return jnp.exp(lm.target.logits(part.params, state) + part.bias).sum()

    found = jax.vmap(one)(jax.random.split(jax.random.key(0), 4000))
    assert float(found.mean()) == pytest.approx(float(full), rel=0.02)
    assert float(found.std()) > 0


def test_the_error_of_a_token_is_that_over_the_part():
    lm, part = toys.model(), drawn(1)
    state = jax.random.normal(jax.random.key(5), (lm.config.hidden_size,))
    scores = lm.target.logits(part.params, state) + part.bias
    found = losses.cross_entropy(scores, part.column[jnp.int32(50)])
    plain = np.asarray(lm.target.logits(lm.params, state))
    wanted = jax.nn.logsumexp(scores) - plain[50]
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("recipe", ["medusa", "hydra", "hydra_pp", "clover"])
def test_as_many_as_there_are_is_the_whole_loss(recipe):
    data = gate.batch([gate.PROMPT])
    whole = gate.first_loss(recipe, data)
    same = gate.first_loss(recipe, data, num_classes=10_000, num_places=100)
    assert same == whole
    part, _ = gate.first_loss(recipe, data, num_classes=16)
    assert np.isfinite(part) and part != whole[0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="num_classes=7 is too few for a batch of 4 tokens"):
        drawn(0, num=7)
    with pytest.raises(InputError, match="num_classes=8 is for heads that read the target's head"):
        gate.objective("medusa", shape={"own_head": True}, num_classes=8)
    classes.check(None, toys.config())
