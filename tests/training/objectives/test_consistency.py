"""Jacobi consistency: trajectories that are those of decoding, its loss, and learned leaps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.protocols import Weights
from jaxdecode.errors import InputError
from jaxdecode.training import losses, probed
from jaxdecode.training.objectives import consistency
from tests import toys
from tests.drafters.test_jacobi import next_guess
from tests.training import gate

WINDOW = 4
SETTINGS = {"window": WINDOW, "num_places": 12}


def packed(first, second):
    """Two texts in one row."""
    data = gate.batch([first + second])
    place = np.r_[: len(first), : len(second)].astype(np.int32)[None]
    text = np.repeat([1, 2], [len(first), len(second)]).astype(np.int32)[None]
    return type(data)(tokens=data.tokens, positions=place, segments=text, weight=data.weight)


def iterates_of(lm, row, window):
    """Windows of greedy Jacobi decoding behind a row, by plain Python."""
    guesses = []
    for _ in range(window):
        guesses.append(next_guess(row, guesses[-1] if guesses else row[-1]))
    found = [guesses]
    for _ in range(window):
        says = toys.full_logits(lm, row + found[-1])[0].argmax(-1)
        found.append(says[len(row) - 1 : len(row) - 1 + window].tolist())
    return found


def test_trajectories_are_those_of_decoding():
    lm, texts = toys.model(), (gate.PROMPT * 2, [7, 9, 7, 8, 7])
    data = packed(*texts)
    places = jnp.asarray([[3, 15, 18, 20]])
    laid = probed.lay_at(jax.tree.map(jnp.asarray, data), places, WINDOW)
    run = jax.jit(lambda: consistency.trajectory(lm.target, lm.params, data, laid))
    found = np.asarray(run())[:, 0]
    for p, place in enumerate(places[0].tolist()):
        own = place if place < 16 else place - 16
        row = texts[place >= 16][: own + 1]
        assert found[:, p].tolist() == iterates_of(lm, row, WINDOW)
        greedy = jd.generate(lm, row, max_new_tokens=WINDOW).tokens[0]
        assert found[-1, p].tolist() == greedy


def test_the_loss_begins_at_the_first_difference():
    found = consistency.differs(jnp.asarray([5, 3, 9, 2]), jnp.asarray([5, 3, 7, 2]))
    assert found.astype(int).tolist() == [0, 0, 1, 1]


def test_an_iterate_before_the_fixed_point_is_drawn():
    iterates = jnp.asarray([[1, 1], [2, 1], [2, 3], [2, 3]])[:, None, None]
    keys = jax.random.split(jax.random.key(0), 64)
    drawn, left = jax.vmap(lambda key: consistency.draw(iterates, key))(keys)
    assert set(map(tuple, drawn[:, 0, 0].tolist())) == {(1, 1), (2, 1)} and (left == 2).all()
    fixed = jnp.broadcast_to(iterates[-1], iterates.shape)
    assert consistency.draw(fixed, keys[0])[1].tolist() == [[0]]


def test_far_fixed_points_give_way_to_the_text():
    data = jax.tree.map(jnp.asarray, gate.batch([[1, 2, 3, 4, 5, 6]]))
    laid = probed.lay_at(data, jnp.asarray([[0, 1, 3]]), 4)
    fixed = jnp.asarray([[[2, 3, 4, 9], [3, 9, 9, 6], [9, 9, 8, 7]]])
    found = consistency.mixed(fixed, data, laid, 0.25)
    assert found.tolist() == [[[2, 3, 4, 9], [3, 4, 5, 6], [5, 6, 8, 7]]]
    assert (consistency.mixed(fixed, data, laid, 1.0) == fixed).all()


def law_after(lm, row):
    scores = toys.full_logits(lm, row)[0].astype(np.float64)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def test_the_loss_is_its_formula():
    """A window of one: its only iterate before the fixed point is the first guess."""
    lm = toys.model()
    row = gate.PROMPT + gate.text(8)
    distances = []
    for place in range(len(row) - 2):
        guess, fixed = (x[0] for x in iterates_of(lm, row[: place + 1], 1))
        if guess == fixed:
            continue
        p, q = (law_after(lm, [*row[: place + 1], token])[-1] for token in (fixed, guess))
        distances.append((p * np.log(p / q)).sum())
    logs = np.log(law_after(lm, row)[:-1])
    chosen = logs[np.arange(len(logs)), row[1:]]
    error = -(0.9 * chosen + 0.1 * logs.mean(-1)).mean()
    found, metrics = gate.first_loss("cllm", gate.batch([row]), window=1, causal=2.0)
    assert metrics["consistency"] == pytest.approx(np.mean(distances), rel=1e-3)
    assert found == pytest.approx(np.mean(distances) + 2 * error, rel=1e-3)


def test_nothing_is_lost_where_the_guess_is_the_fixed_point():
    """A row of one repeated token, and a target that repeats: guesses are right at once."""
    lm = toys.model()
    table = jnp.eye(lm.config.vocab_size)[:, : lm.config.hidden_size]
    params = jax.tree.map(lambda x: x * 0 if x.ndim > 1 else x, lm.params)
    params = params | {"embed": {"embedding": table}, "head": {"kernel": table}}
    data = gate.batch([[4] * 9])
    made, _ = gate.objective("cllm", window=3)
    start = made.init(jax.random.key(0), Weights(params), None)
    _, metrics = jax.jit(made.loss)(start.params, params, data, jax.random.key(0), gate.MOMENT)
    assert float(metrics["consistency"]) == 0 and float(metrics["iterations"]) == 0


def test_labels_are_smoothed():
    scores = jnp.log(jnp.asarray([0.7, 0.2, 0.1]))
    found = losses.cross_entropy(scores, jnp.asarray(0), 0.1)
    wanted = -0.9 * np.log(0.7) - 0.1 * np.log([0.7, 0.2, 0.1]).mean()
    assert float(found) == pytest.approx(wanted)


@pytest.mark.parametrize("recipe", ["cllm", "ceed_vla"])
def test_the_target_that_is_trained_learns_and_the_one_that_guesses_does_not(recipe):
    assert gate.learns_alone(recipe, gate.batch([gate.PROMPT]), window=WINDOW)


def leaps(recipe, steps, **asked):
    """Steps that W + 2 tokens take: one whose guesses are wrong, and one that is right."""
    target, given = gate.trained(recipe, steps=steps, num_new=22, settings=SETTINGS)
    asked = {"max_new_tokens": 18, "window": WINDOW} | asked
    out = jd.generate(target, gate.PROMPT, **given, **asked)
    assert out.tokens == jd.generate(target, gate.PROMPT, max_new_tokens=18).tokens
    return out.stats[0].nfe * (WINDOW + 2) / 18


def test_the_overfit_gate():
    """From guesses that know nothing the target leaps to the end of the window."""
    assert leaps("cllm", 200) <= 2


def test_the_gate_can_fail():
    assert leaps("cllm", 2) > 2


def test_after_training_the_early_end_finds_nothing_wrong():
    assert leaps("ceed_vla", 200, max_corrections=1) <= 2


def test_settings_are_checked():
    for wrong in ({"window": 0}, {"smoothing": 1}, {"causal": -1}, {"max_deviation": 2}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
            consistency.Config(**wrong)
