"""TVD++ by the note's hand values, its samples against the expectation, and the overfit gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.errors import InputError
from jaxdecode.training.objectives import tvdpp
from tests import toys
from tests.training import gate
from tests.training.objectives.test_fastdraft import law_of

OWN, TAUGHT = (jnp.log(jnp.asarray(law)) for law in ([0.5, 0.3, 0.2], [0.2, 0.5, 0.3]))
EXACT = tvdpp.Config()
KEY = jax.random.key(0)


def loss(scores, taught, config=EXACT, key=KEY, weight=None):
    """Of a batch of places `[T, V]` in one text."""
    keys = jax.random.key_data(jax.random.split(key, len(scores)))
    parts = jax.vmap(lambda *x: tvdpp.place(*x, config))(scores, taught, keys)
    weight = jnp.ones(len(scores)) if weight is None else weight
    return tvdpp.combine(jax.tree.map(lambda x: x[None], parts), weight[None])


def test_hand_values():
    parts = tvdpp.place(OWN, TAUGHT, jax.random.key_data(KEY), EXACT)
    np.testing.assert_allclose([parts["overlap"], parts["share"]], [0.7, 2 / 3], rtol=1e-6)

    def variation(scores):
        return -tvdpp.place(scores, TAUGHT, jax.random.key_data(KEY), EXACT)["paid"]

    np.testing.assert_allclose(jax.grad(variation)(OWN), [0.25, -0.15, -0.1], atol=1e-6)
    found = jax.grad(loss)(OWN[None], TAUGHT[None])[0]
    np.testing.assert_allclose(found, [0.5303, -0.3182, -0.2121], atol=1e-4)


def test_samples_agree_with_the_expectation_and_the_mean_lowers_their_variance():
    config = tvdpp.Config(expectation="sampled", num_samples=1)
    keys = jax.random.split(KEY, 100_000)
    gradient = jax.grad(lambda scores, key: loss(scores[None], TAUGHT[None], config, key))
    found = np.asarray(jax.jit(jax.vmap(gradient, (None, 0)))(OWN, keys))
    exact = np.asarray(jax.grad(loss)(OWN[None], TAUGHT[None])[0])
    error = found.std(0) / np.sqrt(len(keys))
    assert (np.abs(found.mean(0) - exact) < 3 * error).all()
    # Total variance with the mean over the vocabulary, before the division by the deviation.
    assert found.var(0).sum() * (2 / 9) == pytest.approx(0.0372, abs=5e-4)
    more = tvdpp.Config(expectation="sampled", num_samples=50_000)
    once = jax.grad(lambda scores: loss(scores[None], TAUGHT[None], more))(OWN)
    np.testing.assert_allclose(once, exact, atol=0.01)


@pytest.mark.parametrize("expectation", ["exact", "sampled"])
def test_equal_laws_have_no_gradient(expectation):
    config = tvdpp.Config(expectation=expectation)
    found = jax.grad(lambda scores: loss(scores, OWN[None], config))(OWN[None])
    np.testing.assert_array_equal(found, jnp.zeros((1, 3)))


def test_places_that_do_not_count_are_in_no_mean():
    scores, taught = jnp.stack([OWN, 3 * OWN]), jnp.stack([TAUGHT, TAUGHT[::-1]])
    both = jax.grad(loss)(scores, taught)
    one = jax.grad(lambda x: loss(x, taught, weight=jnp.asarray([1.0, 0.0])))(scores)
    np.testing.assert_allclose(one[0], [0.5303, -0.3182, -0.2121], atol=1e-4)
    assert not one[1].any() and both[1].any()


def test_the_loss_is_its_formula_on_a_text():
    row = gate.PROMPT
    own, taught = (law_of(lm, row)[:-1] for lm in (toys.model(seed=5), toys.model()))
    reward = taught > own
    wanted = -(own * (reward - reward.mean()) / reward.std()).sum(-1).mean()
    found, metrics = gate.first_loss("tvdpp", gate.batch([row]))
    assert found == pytest.approx(wanted, rel=1e-3)
    assert metrics["overlap"] == pytest.approx(np.minimum(own, taught).sum(-1).mean(), rel=1e-4)


@pytest.mark.parametrize("expectation", ["exact", "sampled"])
def test_the_draft_model_learns_and_the_target_does_not(expectation):
    assert gate.learns_alone("tvdpp", gate.batch([gate.PROMPT]), expectation=expectation)


def test_the_overfit_gate():
    assert gate.passes("tvdpp", depth=4, num_new=24)


def test_the_gate_can_fail():
    assert not gate.passes("tvdpp", depth=4, num_new=24, steps=2)


def test_settings_are_checked():
    with pytest.raises(InputError, match="expectation='mean'"):
        tvdpp.Config(expectation="mean")
    with pytest.raises(InputError, match="num_samples=0"):
        tvdpp.Config(num_samples=0)
