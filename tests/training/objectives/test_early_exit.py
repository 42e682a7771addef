"""Early exits: the note's weights, the loss written out, dropped layers, and the overfit gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.protocols import Weights
from jaxdecode.errors import InputError
from jaxdecode.models import decoder
from jaxdecode.training import whole
from jaxdecode.training.objective import Moment, program
from jaxdecode.training.objectives import early_exit
from jaxdecode.training.recipes import RECIPES
from tests import toys
from tests.training import gate

EVERY = {"stride": 1, "dropout": 0.0}


def at(step, num_steps=100):
    return Moment(jnp.int32(step), num_steps)


def read(layers, counts):
    """The layers that are read."""
    return np.asarray(layers)[np.asarray(counts)].tolist()


def test_weights_of_three_exits_of_eight_layers():
    layers, valid = jnp.asarray([2, 5, 7]), jnp.ones(3, bool)
    found = early_exit.weigh(layers, valid, 8, early_exit.Config())
    np.testing.assert_allclose(found, [0.03093, 0.09278, 0.87629], atol=5e-6)
    found = early_exit.weigh(layers, valid, 8, early_exit.Config(weights="inverse", early=1.0))
    np.testing.assert_allclose(found, np.asarray([8, 4, 3]) / 15, rtol=1e-6)


@pytest.mark.parametrize("weights", ["uniform", "linear", "sum", "sqrt", "inverse"])
def test_exits_take_turns_and_what_does_not_exist_weighs_nothing(weights):
    config = early_exit.Config(stride=3, weights=weights)
    found = [early_exit.exits(at(step), 8, config) for step in range(4)]
    assert [read(*one) for one in found] == [[0, 3, 6, 7], [1, 4, 7], [2, 5, 7], [0, 3, 6, 7]]
    layers, valid = found[2]
    weight = early_exit.weigh(layers, valid, 8, config)
    assert (np.asarray(weight) > 0).tolist() == valid.tolist()
    short = early_exit.weigh(jnp.asarray([2, 5, 7]), jnp.ones(3, bool), 8, config)
    np.testing.assert_allclose(np.asarray(weight)[np.asarray(valid)], short, rtol=1e-6)


def test_exits_are_switched_on_from_the_last_to_the_first():
    """Of four layers all count after half the run: one more for every eighth."""
    config = early_exit.Config(curriculum="gradual")
    found = [read(*early_exit.exits(at(step, 16), 4, config)) for step in range(0, 16, 2)]
    assert found == [[3], [3], [2, 3], [1, 2, 3], *[[0, 1, 2, 3]] * 4]
    whole = [early_exit.Config(curriculum="gradual", opening=1.0), at(8, 16)]
    assert read(*early_exit.exits(whole[1], 4, whole[0])) == [2, 3]


def test_deeper_layers_are_dropped_more_often():
    found = early_exit.dropped(3, 0.2)
    np.testing.assert_allclose(found, [0, 0.2 * (2**0.5 - 1), 0.2], atol=1e-7)


def plain_errors(lm, row):
    """Mean cross-entropy of each layer's exit on a text, in NumPy."""
    taps = [f"layer.{i}" for i in range(lm.config.num_layers)]
    _, states = toys.full_logits(lm, row, taps=taps)
    errors = []
    for name in taps:
        x = states[name].astype(np.float64)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + lm.config.norm_eps)
        scores = (x * lm.params["final_norm"]["scale"]) @ np.asarray(lm.params["head"]["kernel"]).T
        peak = scores.max(-1)
        law = scores - (np.log(np.exp(scores - peak[:, None]).sum(-1)) + peak)[:, None]
        errors.append(-np.mean([law[i, token] for i, token in enumerate(row[1:])]))
    return np.asarray(errors)


def test_the_loss_is_its_formula_on_packed_texts():
    lm, row = toys.model(), gate.PROMPT
    data = gate.batch([row + row])
    size = len(row)
    places, texts = np.arange(2 * size) % size, np.arange(2 * size) // size + 1
    data = jax.tree.map(jnp.asarray, data)
    packed = type(data)(
        tokens=data.tokens,
        positions=jnp.asarray(places[None], jnp.int32),
        segments=jnp.asarray(texts[None], jnp.int32),
        weight=data.weight,
    )
    found, metrics = gate.first_loss("layerskip", packed, **EVERY)
    errors = plain_errors(lm, row)
    assert found == pytest.approx((0.2 * 1 * errors[0] + 3 * errors[1]) / 3.2, rel=1e-4)
    assert metrics["error"] == pytest.approx(errors[1], rel=1e-4)
    # Of two layers the first is read once `opening` is over.
    asked = {"curriculum": "gradual", "dropout": 0.0}
    for step, wanted in ((0, errors[1]), (9, errors[1]), (10, found), (19, found)):
        value, _ = gate.first_loss("layerskip", packed, moment=at(step, 20), **asked)
        assert value == pytest.approx(wanted, rel=1e-4), step


@pytest.mark.parametrize("name", ["llama", "gemma"])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_layer_that_does_not_act_on_a_row_is_not_there_for_it(name, stacked):
    lm = toys.model(name)
    data = gate.batch([gate.PROMPT, gate.PROMPT[::-1]])
    acts = jnp.ones((2, lm.config.num_layers), bool).at[1, 1].set(False)
    params = whole.start(lm.params).params if stacked else lm.params
    forward, taps = lm.target.forward, ("layer.0", "layer.1")
    whole_pass = forward(params, data.tokens, program(data), None, taps)
    found = forward(params, data.tokens, program(data), None, taps, acts)
    np.testing.assert_allclose(found.hidden[0], whole_pass.hidden[0], atol=1e-6)
    np.testing.assert_array_equal(found.taps["layer.1"][1], found.taps["layer.0"][1])
    kept = [i for i in range(lm.config.num_layers) if i != 1]
    windows = tuple(lm.config.layer_windows[i] for i in kept)
    config = toys.gemma_like if name == "gemma" else toys.config
    short = decoder.make_target(config(num_layers=len(kept), layer_windows=windows))
    left = lm.params | {"layers": [lm.params["layers"][i] for i in kept]}
    without = short.forward(left, data.tokens, program(data), None)
    np.testing.assert_allclose(found.hidden[1], without.hidden[1], atol=1e-5)


def test_dropping_changes_the_loss_by_the_key_alone():
    data, asked = gate.batch([gate.PROMPT] * 3), {"stride": 1, "dropout": 0.9}
    found = [gate.first_loss("layerskip", data, key=k, **asked)[0] for k in (1, 2, 1)]
    assert found[0] == found[2] != found[1]


def test_every_part_of_the_target_learns():
    assert gate.learns_alone("layerskip", gate.batch([gate.PROMPT]), **EVERY)


def test_what_is_not_trained_is_exported_as_it_was():
    lm, (made, _) = toys.model(), gate.objective("layerskip")
    start = made.init(jax.random.key(0), Weights(lm.params), None)
    back = made.export(start.params, lm.params).target
    assert jax.tree.structure(back) == jax.tree.structure(lm.params)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(lm.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_overfit_gate():
    assert gate.passes("layerskip", depth=4, settings={"stride": 1}, steps=120, num_draft=4)


def test_exits_that_are_picked_by_the_row_are_right_too():
    """The same training; a row decides how long it drafts, and every draft is accepted."""
    assert RECIPES["del"].objective == RECIPES["layerskip"].objective
    target, _ = gate.trained("layerskip", settings={"stride": 1}, steps=120)
    asked = {"max_new_tokens": 45, "exits": (1,), "num_draft": 4}
    stats = jd.generate(target, gate.PROMPT, method="del", **asked).stats[0]
    assert stats.tokens_forwarded == 45 and stats.nfe < 15


def test_the_gate_can_fail():
    assert not gate.passes("layerskip", depth=4, steps=2, settings={"stride": 1}, num_draft=4)


def test_settings_are_checked():
    with pytest.raises(InputError, match="weights='square' is not known; use one of uniform"):
        early_exit.Config(weights="square")
    with pytest.raises(InputError, match="curriculum='sudden' is not known; use one of rotational"):
        early_exit.Config(curriculum="sudden")
    with pytest.raises(InputError, match="opening=0"):
        early_exit.Config(opening=0)
    with pytest.raises(InputError, match="dropout=1"):
        early_exit.Config(dropout=1)
    with pytest.raises(InputError, match="stride=0"):
        early_exit.Config(stride=0)
