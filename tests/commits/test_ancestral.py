"""The ancestral rule undoes the process slot by slot, and its limit fills one slot per pass."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.commits import ancestral
from jaxdecode.errors import InputError
from tests.commits import blocks

SHARES = {
    "linear": lambda i, steps: 1 - i / steps * (1 - 1e-3),
    "cosine": lambda i, steps: np.cos(np.pi / 2 * i / steps),
}


@pytest.mark.parametrize("schedule", SHARES)
@pytest.mark.parametrize("steps", [1, 7])
def test_the_step_of_a_slot_is_where_its_number_falls(schedule, steps):
    kept = np.random.default_rng(1).uniform(size=2000).astype(np.float32)
    config = ancestral.Config(steps=steps, schedule=schedule)
    share = SHARES[schedule](np.arange(steps), steps)
    wanted = (kept[:, None] < share[1:]).sum(-1)
    found = ancestral.hit(config, jnp.asarray(kept))
    # A number on the edge of two steps may fall to either side.
    assert (np.asarray(found) != wanted).mean() < 1e-3


@pytest.mark.parametrize("schedule", SHARES)
def test_slots_are_decided_in_proportion_to_the_share(schedule):
    """E[slots decided in step i] = L (u(i) - u(i + 1)); 12,000 slots, 4 s.e. is below 0.02."""
    config = ancestral.Config(steps=5, schedule=schedule)
    rows, width = 300, 40
    asked = blocks.request(rows)
    window = blocks.window(blocks.canvas(rows, width), 0, width=width)
    kept = ancestral.confidence.uniform(asked, window, renewed=False)
    share = np.append(SHARES[schedule](np.arange(5), 5), 0)
    found = np.bincount(np.asarray(ancestral.hit(config, kept), int).ravel(), minlength=5)
    np.testing.assert_allclose(found / kept.size, share[:-1] - share[1:], atol=0.02)


def test_steps_that_decide_nothing_take_no_pass():
    scores = np.zeros((40, 12, 3))
    text, history = blocks.run(blocks.rule("ancestral", steps=6), scores)
    kept = ancestral.confidence.uniform(
        blocks.request(40), blocks.window(blocks.canvas(40, 12), 0, width=12), renewed=False
    )
    event = np.asarray(ancestral.hit(ancestral.Config(steps=6), kept), int)
    passes = [len(set(row)) for row in event]
    assert len(set(passes)) > 1, "some rows have empty steps"
    np.testing.assert_array_equal(blocks.order(text).max(1) + 1, passes)
    for row, when in zip(blocks.order(text), event, strict=True):
        np.testing.assert_array_equal(row, np.unique(when, return_inverse=True)[1])
    assert (history[:-1].any(-1).sum(0) == passes).all()


def test_many_steps_are_first_hitting():
    """One slot per pass, in a uniformly random order that both draw alike."""
    scores = np.zeros((30, 9, 3))
    one, _ = blocks.run(blocks.rule("ancestral"), scores)
    many, _ = blocks.run(blocks.rule("ancestral", steps=10**6), scores)
    np.testing.assert_array_equal(blocks.order(one), blocks.order(many))
    assert (np.sort(blocks.order(one)) == np.arange(9)).all()


def test_every_slot_is_first_equally_often():
    text, _ = blocks.run(blocks.rule("ancestral"), np.zeros((3000, 4, 2)))
    first = np.bincount(np.argmin(blocks.order(text), 1), minlength=4)
    assert ((first - 750) ** 2 / 750).sum() < 16.3  # chi-square, 3 degrees, p = 0.001


def test_one_step_fills_all():
    text, history = blocks.run(blocks.rule("ancestral", steps=1), np.zeros((3, 9, 3)))
    assert len(history) == 2 and (blocks.order(text) == 0).all()


def test_an_unknown_schedule_is_refused():
    with pytest.raises(InputError, match="schedule='even' is not known; use one of linear, cosine"):
        ancestral.Config(schedule="even")
