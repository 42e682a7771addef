"""Rules that undo what they decided: counts stay on schedule, and the last step decides all."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.commits import quota, remask, running
from jaxdecode.errors import InputError
from tests.commits import blocks

RNG = np.random.default_rng(4)
MOVING = RNG.normal(size=(16, 3, 16, 7)) * 2


def moving(step, canvas):
    del canvas
    return MOVING[step]


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def running_reference(scores, steps):
    """One row of `running` with the even schedule, in plain NumPy."""
    width = scores.shape[1]
    tokens, sure, is_open = np.zeros(width, int), np.zeros(width), np.ones(width, bool)
    undone = 0
    for step in range(steps):
        laws = log_softmax(scores[step])
        due = width // steps + (step < width % steps)
        due = is_open.sum() if step == steps - 1 else due
        score = np.where(is_open, laws.max(-1), sure)
        kept = np.isin(
            np.arange(width), np.argsort(-score, kind="stable")[: (~is_open).sum() + due]
        )
        new, again = kept & is_open, ~kept & ~is_open
        tokens[new], sure[new] = laws.argmax(-1)[new], laws.max(-1)[new]
        is_open = (is_open & ~new) | again
        undone += again.sum()
    return tokens, undone


@pytest.mark.parametrize("steps", [4, 16])
def test_running_keeps_the_surest_of_all_steps(steps):
    text, history = blocks.run(blocks.rule("running", steps=steps), moving)
    wanted = [running_reference(MOVING[:, row], steps) for row in range(3)]
    np.testing.assert_array_equal(text.tokens[:, 1:-3], [tokens for tokens, _ in wanted])
    assert sum(undone for _, undone in wanted) > 0, "something was undone"
    assert (blocks.sizes(history) == 16 // steps).all()


def test_running_over_scores_that_stay_is_the_schedule():
    for steps in (0, 5):
        ours, _ = blocks.run(blocks.rule("running", steps=steps), MOVING[0])
        theirs, _ = blocks.run(blocks.rule("quota", steps=steps), MOVING[0])
        np.testing.assert_array_equal(blocks.order(ours), blocks.order(theirs))


@pytest.mark.parametrize("asked", [{"order": "entropy"}, {"order_noise": 1.0}])
def test_running_refuses_orders_that_cannot_be_compared_over_steps(asked):
    with pytest.raises(InputError, match="cannot be compared with earlier steps"):
        running.Config(**asked)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("max_hidden", [0.0, 0.3, 1.0])
def test_remask_keeps_the_share_of_the_schedule(schedule, max_hidden):
    """The open share before step i is u(i) in the mean; 8,000 slots, 4 s.e. is below 0.023."""
    steps = 6
    rule = blocks.rule("remask", steps=steps, schedule=schedule, max_hidden=max_hidden)
    _, history = blocks.run(rule, np.zeros((200, 40, 2)))
    share = np.arange(steps + 1) / steps
    share = 1 - share if schedule == "linear" else np.cos(np.pi / 2 * share)
    np.testing.assert_allclose(history.mean((1, 2)), share, atol=0.023)
    hidden = [(~a & b).sum() / max((~a).sum(), 1) for a, b in itertools.pairwise(history)]
    most = np.minimum(max_hidden, share[1:] / np.maximum(1 - share[:-1], 1e-9))
    np.testing.assert_allclose(hidden[1:], most[1:], atol=0.03)
    assert hidden[-1] == 0 and len(history) == steps + 1


def test_remask_without_steps_takes_one_per_slot():
    _, history = blocks.run(blocks.rule("remask"), np.zeros((3, 9, 2)))
    assert len(history) - 1 == 9


def test_what_a_second_look_costs_is_its_steps_however_long_the_text():
    for width in (24, 56):
        scores = RNG.normal(size=(12, 2, width, 5)) * 3
        _, history = blocks.run(blocks.rule("second_look"), lambda i, _: scores[i])  # noqa: B023
        assert len(history) - 1 == 12
        assert (~history[:-1] & history[1:]).any(), "something was reopened"


def test_without_a_budget_a_second_look_changes_nothing():
    ours, _ = blocks.run(blocks.rule("second_look", budget=0.0, steps=6), moving)
    theirs, _ = blocks.run(blocks.rule("quota", schedule="cosine", steps=6), moving)
    np.testing.assert_array_equal(blocks.order(ours), blocks.order(theirs))
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)


def corrupted(step, canvas):
    """A target that knows the text, but writes two wrong tokens in step 2 and is then sorry."""
    del canvas
    scores = np.zeros((1, 16, 4), np.float32)
    scores[..., 1] = 4 - np.arange(16) / 16
    if step == 2:
        scores[0, 3:5, 1], scores[0, 3:5, 2] = 0, 4
    return scores


def test_wrong_tokens_are_repaired_by_a_second_look_only():
    asked = dict(steps=8, schedule="even")
    text, _ = blocks.run(blocks.rule("second_look", **asked), corrupted)
    assert (text.tokens[0, 1:-3] == 1).all()
    text, _ = blocks.run(blocks.rule("second_look", budget=0.0, **asked), corrupted)
    wrong = np.flatnonzero(np.asarray(text.tokens[0, 1:-3]) == 2)
    assert len(wrong) > 0


def test_a_second_look_reopens_what_is_improbable_or_has_fallen_the_worst_first():
    """Decided tokens of probability then -> now, in the fourth of eight steps: the bound is 0.35.

    A slot of the prompt is not looked at, one that has kept its probability stays.
    """
    then = np.array([0.9, 0.9, 0.5, 0.4, 0.36])
    now = np.array([0.6, 0.7, 0.30, 0.34, 0.36])
    doubted = np.array([True, False, True, True, False])
    text = blocks.canvas(1, 8)
    slot = slice(1, 6)
    text = dataclasses.replace(
        text,
        open=text.open.at[0, slot].set(False),
        commit_step=text.commit_step.at[0, slot].set(0),
        logprob=text.logprob.at[0, slot].set(jnp.log(then)),
    )
    law = np.full((1, 8, 3), 1 / 3)
    law[0, :5] = np.stack([now, (1 - now) / 2, (1 - now) / 2], -1)
    window = blocks.window(text, 3, width=8)
    drawn = blocks.candidates(np.log(law))
    for budget, wanted in [(1.0, doubted), (0.4, now < 0.35), (0.1, now == 0.30), (0.0, now < 0)]:
        rule = blocks.rule("second_look", steps=8, budget=budget)
        decision = rule.select(None, blocks.request(1), text, window, drawn)
        assert decision.reopen is not None
        np.testing.assert_array_equal(decision.reopen[0, :5], wanted)
        assert not decision.reopen[0, 5:].any()
    last = blocks.window(text, 7, width=8)
    rule = blocks.rule("second_look", steps=8, budget=1.0)
    decision = rule.select(None, blocks.request(1), text, last, drawn)
    assert not decision.reopen.any() and decision.commit[0, 5:].all()


def test_linear_schedules_end_with_their_steps():
    window = blocks.window(blocks.canvas(1, 8), 7, width=8)
    assert quota.due(quota.Config(schedule="linear"), window).tolist() == [8]


@pytest.mark.parametrize("asked", [{"max_hidden": 1.5}, {"schedule": "even"}, {"steps": -1}])
def test_remask_refuses_what_it_cannot_do(asked):
    with pytest.raises(InputError, match=next(iter(asked))):
        remask.Config(**asked)
