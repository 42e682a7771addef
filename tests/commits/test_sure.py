"""Rules that fill what the target is sure of: confident, entropy, entropy_bound, early_answer."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.commits import early_answer, entropy_bound
from jaxdecode.errors import InputError
from tests.commits import blocks

RNG = np.random.default_rng(2)
# From nearly uniform to nearly certain.
SCORES = RNG.normal(size=(6, 12, 7)) * RNG.uniform(0.2, 6, size=(6, 12, 1))
PROBS = np.exp(SCORES) / np.exp(SCORES).sum(-1, keepdims=True)
ENTROPY = -(PROBS * np.log(PROBS)).sum(-1)
TOP = PROBS.max(-1)


def same(one, two):
    return np.array_equal(blocks.order(one[0]), blocks.order(two[0]))


def first_step(rule, scores=SCORES):
    _, history = blocks.run(rule, scores)
    return history[0] & ~history[1]


@pytest.mark.parametrize("steps", [0, 5])
def test_confident_without_sure_slots_is_the_schedule(steps):
    """The note: threshold 1 is the schedule."""
    ours = blocks.run(blocks.rule("confident", threshold=1.0, steps=steps), SCORES)
    assert same(ours, blocks.run(blocks.rule("quota", steps=steps), SCORES))


def test_confident_takes_what_is_sure_and_else_what_the_schedule_gives():
    for threshold in (0.5, 0.9):
        found = first_step(blocks.rule("confident", threshold=threshold, steps=4))
        for row in range(6):
            sure = TOP[row] > threshold
            fallback = np.isin(np.arange(12), np.argsort(-TOP[row], kind="stable")[:3])
            np.testing.assert_array_equal(found[row], sure if sure.any() else fallback)


def test_confident_with_one_slot_to_fall_back_on_is_threshold():
    ours = blocks.run(blocks.rule("confident", threshold=0.8), SCORES)
    assert same(ours, blocks.run(blocks.rule("threshold", threshold=0.8), SCORES))


def test_confident_ends_with_its_steps():
    _, history = blocks.run(blocks.rule("confident", threshold=0.99, steps=3), SCORES)
    assert len(history) - 1 <= 3


def test_thresholds_of_zero_and_beyond_are_one_pass_and_one_slot():
    for file, option, all_at_once, one_by_one in [
        ("threshold", "threshold", 1e-9, 1.0),
        ("confident", "threshold", 1e-9, 1.0),
        ("entropy", "threshold", 100.0, 0.0),
        ("entropy_bound", "gamma", 100.0, 0.0),
    ]:
        _, history = blocks.run(blocks.rule(file, **{option: all_at_once}), SCORES)
        assert len(history) == 2, file
        _, history = blocks.run(blocks.rule(file, **{option: one_by_one}), SCORES)
        assert len(history) == 13, file


@pytest.mark.parametrize("threshold", [0.1, 0.5, 1.5])
def test_entropy_takes_slots_of_little_doubt_and_at_least_one(threshold):
    found = first_step(blocks.rule("entropy", threshold=threshold))
    least = np.eye(12, dtype=bool)[ENTROPY.argmin(1)]
    np.testing.assert_array_equal(found, (threshold >= ENTROPY) | least)


def test_entropy_in_the_limit_is_the_order_of_quota():
    for rule in (blocks.rule("entropy", threshold=0.0), blocks.rule("entropy_bound", gamma=0.0)):
        assert same(
            blocks.run(rule, SCORES), blocks.run(blocks.rule("quota", order="entropy"), SCORES)
        )


@pytest.mark.parametrize("gamma", [0.0, 0.05, 0.5, 3.0])
@pytest.mark.parametrize("order", ["entropy", "probability"])
def test_the_bound_takes_the_largest_set_within_it(gamma, order):
    found = first_step(blocks.rule("entropy_bound", gamma=gamma, order=order))
    key = ENTROPY if order == "entropy" else -TOP
    for row in range(6):
        turn = np.argsort(key[row], kind="stable")
        sums = [ENTROPY[row][turn[:n]].sum() - ENTROPY[row][turn[:n]].max() for n in range(1, 13)]
        num = max(n for n in range(1, 13) if n == 1 or sums[n - 1] <= gamma + 1e-6)
        np.testing.assert_array_equal(found[row], np.isin(np.arange(12), turn[:num]))


def test_what_the_bound_allows_is_the_most_that_independence_can_cost():
    """Two slots that always agree: their law is ln 2 away from independent ones."""
    half = np.log(np.full((1, 2, 2), 0.5))
    assert first_step(blocks.rule("entropy_bound", gamma=0.69), half).sum() == 1
    assert first_step(blocks.rule("entropy_bound", gamma=0.70), half).sum() == 2


def test_closed_slots_do_not_count_towards_the_bound():
    doubt, score = jnp.array([[5.0, 0.3, 0.1]]), jnp.array([[9.0, -0.3, -0.1]])
    found = entropy_bound.within(0.2, score, doubt, jnp.array([[False, True, True]]))
    assert found.tolist() == [[False, True, True]]


def gapped(*gaps):
    """Scores of two tokens with these gaps."""
    return np.stack([np.array(gaps, float), np.zeros(len(gaps))], -1)[None]


@pytest.mark.parametrize("watch", ["mean", "least"])
def test_an_answer_is_known_once_the_gap_reaches_the_threshold_of_its_third(watch):
    """Gaps of 5.5: not enough in the first third of nine steps, which is 0, 1 and 2 (0.22)."""
    config = dict(watch=watch)
    _, history = blocks.run(blocks.rule("early_answer", **config), gapped(*[5.5] * 9))
    assert blocks.sizes(history)[:, 0].tolist() == [1, 1, 1, 6]
    _, history = blocks.run(blocks.rule("early_answer", **config), gapped(*[7.5] * 9))
    assert blocks.sizes(history)[:, 0].tolist() == [9]
    _, history = blocks.run(blocks.rule("early_answer", **config), gapped(*[2.6] * 9))
    assert blocks.sizes(history)[:, 0].tolist() == [1] * 7 + [2]


def test_the_mean_may_know_what_the_least_gap_does_not():
    scores = gapped(20.0, 20.0, 0.1, 20.0)
    assert first_step(blocks.rule("early_answer"), scores).all()
    assert first_step(blocks.rule("early_answer", watch="least"), scores).sum() == 1


def test_a_target_that_never_knows_is_the_schedule():
    """Ideal scores of a shuffle tie: their gaps are 0."""
    scores = np.zeros((2, 6, 5))
    _, history = blocks.run(blocks.rule("early_answer"), scores)
    assert len(history) == 7
    never = blocks.run(blocks.rule("early_answer", gaps=(99.0, 99.0, 99.0), steps=4), SCORES)
    assert same(never, blocks.run(blocks.rule("quota", steps=4), SCORES))


def test_exits_are_later_with_larger_thresholds():
    passes = []
    for scale in (0.1, 0.3, 0.6, 2.0):
        gaps = tuple(scale * gap for gap in (7.5, 5.0, 2.5))
        _, history = blocks.run(blocks.rule("early_answer", gaps=gaps), SCORES)
        passes.append(history[:-1].any(-1).sum(0))
    assert (np.diff(passes, axis=0) >= 0).all() and (passes[0] < passes[-1]).any()


@pytest.mark.parametrize("gaps", [(1.0, 2.0), 3.0, (1.0, 2.0, "x")])
def test_gaps_that_are_not_three_numbers_are_refused(gaps):
    with pytest.raises(InputError, match="gaps=.* three numbers"):
        early_answer.Config(gaps=gaps)
