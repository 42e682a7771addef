"""Medusa-2: the loss by hand, what moves, and the gate with the changed target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.core.protocols import Weights
from jaxdecode.errors import InputError
from jaxdecode.training.objective import Moment
from jaxdecode.training.objectives import medusa2
from tests import toys
from tests.training import gate

TEXT = [5, 2, 9, 4, 4, 1, 3, 8, 6, 2, 7, 5]


def test_the_loss_weighs_target_and_heads_as_the_paper_does():
    found = medusa2.joint(jnp.asarray([1.5, 1.0, 2.0]), 0.2, medusa2.Config())
    assert float(found) == pytest.approx(1.916)


def weights(config, num_steps=8):
    moments = [Moment(jnp.int32(step), num_steps) for step in range(num_steps)]
    return [float(medusa2.weight_at(moment, config)) for moment in moments]


def test_the_weight_of_the_heads_rises():
    assert weights(medusa2.Config()) == pytest.approx([0.2] * 8)
    linear = medusa2.Config(rise="linear", heads_weight=0.8)
    assert weights(linear) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    # Two steps of the first stage; the weight rises over half of the other six.
    late = medusa2.Config(rise="linear", heads_weight=0.9, alone=0.25, rising=0.5)
    assert weights(late)[2:] == pytest.approx([0, 0.3, 0.6, 0.9, 0.9, 0.9])
    sine = medusa2.Config(rise="sine", heads_weight=1.0)
    assert weights(sine, 3) == pytest.approx([0, 0.5, 0.75**0.5], abs=1e-6)


WARM = {"alone": 0.5, "rise": "linear", "heads_weight": 0.4}


def test_the_target_learns_only_after_the_first_stage():
    """Step 4 of 8 begins the second stage, at first with no weight on the heads."""
    lm, data = toys.model(), gate.batch([TEXT, TEXT[2:8]])
    made, _ = gate.objective("medusa2", shape={"num_heads": 2}, **WARM)
    params = made.init(jax.random.key(0), Weights(lm.params), None).params

    @jax.jit
    def loss(params, step):
        return made.loss(params, lm.params, data, jax.random.key(0), Moment(step, 8))[0]

    constant = gate.objective("medusa2", shape={"num_heads": 2}, heads_weight=0.0)[0]
    target_only, _ = constant.loss(params, lm.params, data, jax.random.key(0), gate.MOMENT)
    alone, _ = gate.first_loss("medusa", data, shape={"num_heads": 2})
    found = [float(loss(params, step)) for step in (0, 3, 4, 6)]
    wanted = [alone, alone, float(target_only), float(target_only) + 0.2 * alone]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for step in (3, 6):
        grads = jax.grad(loss)(params, step)
        assert all(np.any(leaf) for leaf in jax.tree.leaves(grads["heads"]))
        moves = [bool(np.any(leaf)) for leaf in jax.tree.leaves(grads["target"])]
        assert all(moves) if step == 6 else not any(moves)


def test_settings_are_checked():
    with pytest.raises(InputError, match="alone=1"):
        medusa2.Config(alone=1)
    with pytest.raises(InputError, match="rise='cosine' is not known; use one of constant"):
        medusa2.Config(rise="cosine")
    with pytest.raises(InputError, match="rising=0"):
        medusa2.Config(rising=0)


def test_target_and_heads_move_and_the_given_target_does_not():
    lm = toys.model()
    made, _ = gate.objective("medusa2", shape={"own_head": True})
    params = made.init(jax.random.key(0), Weights(lm.params), None).params
    data = gate.batch([TEXT, TEXT[2:8]])

    def loss(params, target):
        return made.loss(params, target, data, jax.random.key(0), gate.MOMENT)[0]

    own, others = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, lm.params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(own))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(others))


def test_what_is_exported_is_the_target_before_the_first_step():
    lm = toys.model()
    made, _ = gate.objective("medusa2")
    found = made.export(made.init(jax.random.key(0), Weights(lm.params), None).params, lm.params)
    jax.tree.map(np.testing.assert_array_equal, found.target, dict(lm.params))


def test_the_overfit_gate():
    assert gate.passes(
        "medusa2",
        depth=4,
        lr=3e-3,
        lm=toys.model(seed=5),
        num_new=25,
        settings={"heads_weight": 1.0},
    )
