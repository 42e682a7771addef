"""Rules over targets that know the exact marginals of list tasks: closed forms, and no training.

What any rule can reach on these is known: copies may be filled at once, a shuffle only one by one.
"""

import math

import numpy as np
import pytest

from tests.commits import blocks

ROWS = 2000
# Probability of what cannot be, as a score.
NEVER = -30.0


def copy(n):
    """A text that is known: token i in slot i."""
    scores = np.full((ROWS, n, n + 1), NEVER, np.float32)
    scores[:, np.arange(n), np.arange(n)] = 0
    return lambda step, canvas: scores


def shuffle(n, rows=ROWS):
    """n tokens in any order: an open slot holds any token that is not yet there."""

    def scores(step, canvas):
        found = np.zeros((rows, n, n + 1), np.float32)
        found[..., n] = NEVER
        if canvas is not None:
            for slot in range(n):
                is_set = ~np.asarray(canvas.open[:, 1 + slot])
                token = np.asarray(canvas.tokens[:, 1 + slot])
                found[is_set, :, token[is_set]] = NEVER
        return found

    return scores


def replace(n, rows=ROWS):
    """A known text with one token, at a random place, replaced by token n."""

    def scores(step, canvas):
        is_open, hit = np.ones((rows, n), bool), np.zeros(rows, bool)
        if canvas is not None:
            is_open = np.asarray(canvas.open[:, 1 : 1 + n])
            hit = (~is_open & (np.asarray(canvas.tokens[:, 1 : 1 + n]) == n)).any(-1)
        left = np.maximum(is_open.sum(-1), 1)
        chance = np.where(hit, 0.0, 1 / left)[:, None]
        found = np.full((rows, n, n + 1), NEVER, np.float32)
        floor = math.exp(NEVER)
        found[:, np.arange(n), np.arange(n)] = np.log(np.maximum(1 - chance, floor))
        found[..., n] = np.log(np.maximum(chance, floor))
        return found

    return scores


def texts(canvas, n):
    return np.asarray(canvas.tokens[:, 1 : 1 + n])


def is_shuffled(text):
    return (np.sort(text, 1) == np.arange(text.shape[1])).all(1)


def is_replaced(text):
    n = text.shape[1]
    return ((text == n).sum(1) == 1) & ((text == n) | (text == np.arange(n))).all(1)


def shuffle_accuracy(n, k):
    found, m = 1.0, n
    while m:
        found *= math.perm(m, min(k, m)) / m ** min(k, m)
        m -= min(k, m)
    return found


def replace_accuracy(m, k):
    if m <= 0:
        return 0.0
    one = k * (1 / m) * (1 - 1 / m) ** (k - 1) if m > 1 else 1.0
    return one + (1 - 1 / m) ** k * replace_accuracy(m - k, k)


def test_the_closed_forms_are_those_of_the_note():
    assert [shuffle_accuracy(4, k) for k in (1, 2, 4)] == [1.0, 0.375, 0.09375]
    assert [replace_accuracy(4, k) for k in (2, 4)] == [21 / 32, 27 / 64]
    np.testing.assert_allclose(
        [replace_accuracy(6, k) for k in (2, 3)], [0.7335, 0.6044], atol=1e-4
    )


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(
    ("task", "is_right", "wanted"),
    [(shuffle, is_shuffled, shuffle_accuracy), (replace, is_replaced, replace_accuracy)],
)
def test_random_turns_reach_the_closed_form(task, is_right, wanted, k):
    rule = blocks.rule("quota", order="random", steps=4 // k)
    text, _ = blocks.run(rule, task(4), draw=np.random.default_rng(k))
    right, goal = is_right(texts(text, 4)).mean(), wanted(4, k)
    assert abs(right - goal) <= 3.5 * math.sqrt(goal * (1 - goal) / ROWS) + 1e-9


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("threshold", {}),
        ("factor", {}),
        ("confident", {}),
        ("entropy", {}),
        ("entropy_bound", {}),
        ("early_answer", {}),
    ],
)
def test_what_is_known_is_filled_at_once_and_a_shuffle_one_by_one(file, options):
    rule = blocks.rule(file, **options)
    text, history = blocks.run(rule, copy(6))
    assert len(history) == 2 and (texts(text, 6) == np.arange(6)).all()
    text, history = blocks.run(rule, shuffle(6), draw=np.random.default_rng(0))
    assert is_shuffled(texts(text, 6)).all()
    assert len(history) - 1 == 6


@pytest.mark.parametrize("n", [5, 9, 11, 15])
def test_a_threshold_of_nine_tenths_fails_past_ten_slots_and_the_factor_does_not(n):
    """No slot is the replaced one with more than 1 / n: past ten, all are surely unchanged."""
    text, _ = blocks.run(blocks.rule("threshold"), replace(n, rows=1))
    assert is_replaced(texts(text, n)).all() == (n < 10)
    text, history = blocks.run(blocks.rule("factor"), replace(n, rows=1))
    assert is_replaced(texts(text, n)).all() and len(history) - 1 <= 3
