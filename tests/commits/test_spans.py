"""Spans are decided together, the surest first, as many as the cosine leaves."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.commits import spans
from jaxdecode.errors import InputError
from tests.commits import blocks

RNG = np.random.default_rng(5)
SCORES = RNG.normal(size=(4, 12, 6)) * 2
LOGPROB = (SCORES - np.log(np.exp(SCORES).sum(-1, keepdims=True))).max(-1)


def test_so_many_spans_are_undecided_before_each_step():
    """The note: 12 slots in spans of 3 and 4 steps: 4, 3, 2, 1 spans are masked."""
    _, history = blocks.run(blocks.rule("spans", steps=4), SCORES, given=3)
    assert (history.sum(-1) // 3).T.tolist() == [[4, 3, 2, 1, 0]] * 4


@pytest.mark.parametrize(("span_score", "measure"), [("likeliest", np.max), ("all", np.sum)])
def test_the_surest_spans_come_first_and_whole(span_score, measure):
    rule = blocks.rule("spans", steps=4, span_score=span_score)
    text, _ = blocks.run(rule, SCORES, given=3)
    order = blocks.order(text, given=3).reshape(4, 4, 3)
    assert (order == order[..., :1]).all()
    score = measure(LOGPROB.reshape(4, 4, 3), axis=-1)
    np.testing.assert_array_equal(np.argsort(order[..., 0], 1), np.argsort(-score, 1))


def test_there_are_no_more_passes_than_spans():
    _, history = blocks.run(blocks.rule("spans", steps=20), SCORES, given=3)
    assert (history.sum(-1) // 3).T.tolist() == [[4, 3, 2, 1, 0]] * 4


def test_given_text_may_cut_a_span():
    """One slot of text before 12: spans of 2, 3, 3, 3 and 1 slots."""
    text, _ = blocks.run(blocks.rule("spans", steps=5), SCORES)
    order = blocks.order(text)
    for first, last in [(0, 2), (2, 5), (5, 8), (8, 11), (11, 12)]:
        assert (order[:, first:last] == order[:, first : first + 1]).all()


def test_spans_of_one_slot_are_the_likeliest_slots_at_the_pace_of_a_cosine():
    text, history = blocks.run(blocks.rule("spans", span=1, steps=6), SCORES)
    left = [max(int(12 * np.cos(np.pi / 2 * i / 5) + 1e-9), 1) for i in range(6)]
    assert history.sum(-1).T.tolist() == [[*left, 0]] * 4
    turn = np.argsort(blocks.order(text), axis=1, kind="stable")
    for row in range(4):
        ranked = LOGPROB[row][turn[row]]
        ends = 12 - np.array([*left[1:], 0])
        for first, last in zip([0, *ends[:-1]], ends, strict=True):
            assert last == 12 or ranked[first:last].min(initial=9) >= ranked[last:].max()


def test_whole_numbers_of_spans_are_not_lost_to_rounding():
    config = spans.Config(steps=4)
    for num in range(2, 200, 2):
        found = spans.remaining(config, jnp.array([num]), jnp.array([2]))
        assert found.tolist() == [num // 2]


@pytest.mark.parametrize("asked", [{"span": 0}, {"steps": 0}, {"span_score": "mean"}])
def test_options_out_of_range_are_refused(asked):
    with pytest.raises(InputError, match=next(iter(asked))):
        spans.Config(**asked)
