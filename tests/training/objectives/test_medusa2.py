"""Medusa-2: the loss by hand, what moves, and the gate with the changed target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.core.protocols import Weights
from jaxdecode.training.objectives import medusa2
from tests import toys
from tests.training import gate

TEXT = [5, 2, 9, 4, 4, 1, 3, 8, 6, 2, 7, 5]


def test_the_loss_weighs_target_and_heads_as_the_paper_does():
    found = medusa2.joint(jnp.asarray([1.5, 1.0, 2.0]), medusa2.Config())
    assert float(found) == pytest.approx(1.916)


def test_target_and_heads_move_and_the_given_target_does_not():
    lm = toys.model()
    made, _ = gate.objective("medusa2", shape={"own_head": True})
    params = made.init(jax.random.key(0), Weights(lm.params)).params
    data = gate.batch([TEXT, TEXT[2:8]])

    def loss(params, target):
        return made.loss(params, target, data, jax.random.key(0))[0]

    own, others = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, lm.params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(own))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(others))


def test_what_is_exported_is_the_target_before_the_first_step():
    lm = toys.model()
    made, _ = gate.objective("medusa2")
    found = made.export(made.init(jax.random.key(0), Weights(lm.params)).params, lm.params)
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
