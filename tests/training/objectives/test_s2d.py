"""Nested exits: the loss is that of the models cut short, and every exit passes the gate."""

import jax
import numpy as np
import pytest

from jaxdecode import api
from jaxdecode.core.protocols import Models, Weights
from jaxdecode.errors import InputError
from jaxdecode.training.objectives import s2d
from tests import toys
from tests.training import gate
from tests.training.objectives.test_early_exit import plain_errors

STEPS = 120


def test_the_loss_is_the_sum_over_the_exits():
    found, metrics = gate.first_loss("s2d", gate.batch([gate.PROMPT]), begin="draft")
    wanted = plain_errors(toys.model(seed=5), gate.PROMPT).sum()
    assert found == pytest.approx(wanted, rel=1e-4)
    assert set(metrics) == {"accuracy.1", "accuracy.2"}


def test_the_draft_model_may_begin_as_the_targets_first_layers():
    lm, cut = toys.model("gemma"), toys.gemma_like(num_layers=3, layer_windows=(7, 7, 0))
    small = api.from_params(cut, toys.params(cut, 3), name="small")
    made = s2d.make(s2d.Config(), Models(lm.bound, small.bound))
    start = made.init(jax.random.key(0), Weights(lm.params, small.params), None)
    found = made.export(start.params, lm.params).draft
    wanted = lm.params | {"layers": lm.params["layers"][:3]}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_draft_model_that_cannot_begin_there_is_refused():
    lm, wide = toys.model(), toys.config(intermediate_size=64)
    other = api.from_params(wide, toys.params(wide), name="wide")
    made = s2d.make(s2d.Config(), Models(lm.bound, other.bound))
    with pytest.raises(InputError, match="other widths.*objective.begin=draft"):
        made.init(jax.random.key(0), Weights(lm.params, other.params), None)
    deep = toys.model("gemma")
    made = s2d.make(s2d.Config(), Models(lm.bound, deep.bound))
    with pytest.raises(InputError, match="first 4 layers.*there are 2"):
        made.init(jax.random.key(0), Weights(lm.params, deep.params), None)
    with pytest.raises(InputError, match="begin='both'"):
        s2d.Config(begin="both")
    with pytest.raises(InputError, match="exits=.5,. go past"):
        s2d.make(s2d.Config(exits=(5,)), Models(lm.bound, lm.bound))


def test_the_draft_model_learns_and_the_target_does_not():
    assert gate.learns_alone("s2d", gate.batch([gate.PROMPT]))


@pytest.mark.parametrize("confidence", [0.0, 2.0])
def test_the_overfit_gate_of_the_first_exit_and_of_all_layers(confidence):
    asked = {"settings": {"begin": "draft"}, "steps": STEPS, "confidence": confidence}
    assert gate.passes("s2d", depth=4, exits=(1,), **asked)


def test_the_gate_can_fail():
    asked = {"settings": {"begin": "draft"}, "steps": 2, "confidence": 0.0}
    assert not gate.passes("s2d", depth=4, exits=(1,), **asked)
