"""Orders, their noise and the schedules of `quota`, over random scores."""

import numpy as np
import pytest

from jaxdecode.commits import quota
from jaxdecode.errors import InputError
from tests.commits import blocks

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(3, 16, 11)) * 2


def probs(scores):
    law = np.exp(scores - scores.max(-1, keepdims=True))
    return law / law.sum(-1, keepdims=True)


MEASURES = {
    "probability": lambda p: p.max(-1),
    "log_probability": lambda p: np.log(p.max(-1)),
    "margin": lambda p: np.sort(p)[..., -1] - np.sort(p)[..., -2],
    "entropy": lambda p: (p * np.log(p)).sum(-1),
    "left_to_right": lambda p: -np.broadcast_to(np.arange(p.shape[1]), p.shape[:2]),
}


@pytest.mark.parametrize("order", MEASURES)
def test_slots_come_by_their_measure(order):
    text, _ = blocks.run(blocks.rule("quota", order=order), SCORES)
    turn = np.argsort(blocks.order(text), axis=1)
    np.testing.assert_array_equal(turn, np.argsort(-MEASURES[order](probs(SCORES)), axis=1))


@pytest.mark.parametrize(
    ("schedule", "steps", "wanted"),
    [
        ("even", 5, [4, 3, 3, 3, 3]),
        ("linear", 4, [3, 4, 4, 5]),
        ("cosine", 4, [2, 3, 5, 6]),
        ("doubling", 4, [1, 2, 4, 9]),
        ("doubling", 0, [1, 2, 4, 8, 1]),
    ],
)
def test_schedules_fill_so_many_slots_per_step(schedule, steps, wanted):
    _, history = blocks.run(blocks.rule("quota", schedule=schedule, steps=steps), SCORES)
    assert blocks.sizes(history).T.tolist() == [wanted] * 3


def test_doubling_takes_as_many_passes_as_the_power_of_two_has():
    """The note: 256 slots in 8 steps are 1, 2, 4, ..., 64, 129."""
    scores = RNG.normal(size=(1, 256, 2))
    _, history = blocks.run(blocks.rule("quota", schedule="doubling", steps=8), scores)
    assert blocks.sizes(history)[:, 0].tolist() == [1, 2, 4, 8, 16, 32, 64, 129]


def first_slots(noise, num_rows=4000, **options):
    """How often each of four slots of these probabilities comes first."""
    tops = np.array([0.9, 0.7, 0.5, 0.4])
    law = np.log(np.stack([tops, *[(1 - tops) / 4] * 4], -1))
    scores = np.broadcast_to(law, (num_rows, 4, 5))
    rule = blocks.rule("quota", order_noise=noise, **options)
    _, history = blocks.run(rule, scores)
    return tops, (history[0] & ~history[1]).mean(0)


def test_noise_draws_slots_by_the_softmax_of_their_scores():
    """alg_temp: the first slot has the law softmax(confidence / alg_temp); 4 s.e. is 0.03."""
    tops, found = first_slots(0.5)
    np.testing.assert_allclose(found, probs(tops / 0.5), atol=0.03)
    tops, found = first_slots(0.5, order="log_probability", anneal=True)
    np.testing.assert_allclose(found, probs(np.log(tops) / 0.5), atol=0.03)


def test_annealed_noise_is_gone_in_the_last_step():
    window = blocks.window(blocks.canvas(1, 8), 3, width=8)
    for steps, wanted in [(0, 3 / 7), (4, 1.0), (7, 0.5), (1, 1.0)]:
        config = quota.Config(steps=steps)
        np.testing.assert_allclose(quota.progress(config, window), [wanted], atol=1e-6)


@pytest.mark.parametrize("noise", [-1, float("inf"), True])
def test_noise_that_is_no_amount_is_refused(noise):
    with pytest.raises(InputError, match="order_noise="):
        quota.Config(order_noise=noise)
