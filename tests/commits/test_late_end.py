"""End tokens wait while it is early; nothing else changes."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.commits import late_end
from jaxdecode.errors import InputError
from tests.commits import blocks

END = 4
RNG = np.random.default_rng(3)
SCORES = RNG.normal(size=(5, 8, 5)) * 2
TOP = (np.exp(SCORES) / np.exp(SCORES).sum(-1, keepdims=True)).max(-1)
ENDS = SCORES.argmax(-1) == END


def decided(chosen, step):
    asked = blocks.request(5, (END,))
    window = blocks.window(blocks.canvas(5, 8), step, width=8)
    drawn = blocks.candidates(SCORES)
    decision = chosen.select(None, asked, None, window, drawn)
    return np.asarray(decision.commit)


@pytest.mark.parametrize("step", range(7))
def test_the_weight_of_an_end_rises_from_step_to_step(step):
    weight = np.where(ENDS, 0.4 + 0.6 * step / 7, 1.0)
    wanted = np.eye(8, dtype=bool)[(TOP * weight).argmax(1)]
    np.testing.assert_array_equal(decided(blocks.rule("late_end"), step), wanted)


def test_with_doubling_the_weight_follows_the_slots_that_are_decided():
    """The note: (2^(i + 1) - 1) / 2^S in step i of S, for 2^S slots; here 1 / 8 and 3 / 8."""
    config = late_end.Config(schedule="doubling", steps=3)
    text = blocks.canvas(1, 8)
    for step, left, wanted in [(0, 8, 1 / 8), (1, 7, 3 / 8), (2, 5, 1.0)]:
        window = blocks.window(text, step, width=8)
        window = window.__class__(**{**vars(window), "open": jnp.arange(8)[None] < left})
        num = late_end.quota.due(config, window)
        np.testing.assert_allclose(late_end._progress(config, window, num), [wanted])


@pytest.mark.parametrize(("weight", "stop_tokens"), [(1.0, (END,)), (0.4, ())])
def test_full_weight_and_no_end_tokens_are_the_schedule(weight, stop_tokens):
    asked = blocks.request(5, stop_tokens)
    ours = blocks.run(blocks.rule("late_end", end_weight=weight), SCORES, asked=asked)[0]
    theirs = blocks.run(blocks.rule("quota"), SCORES, asked=asked)[0]
    np.testing.assert_array_equal(blocks.order(ours), blocks.order(theirs))


def test_a_text_is_not_ended_before_it_is_written():
    """A target that is sure of ends at the far side, and a little less of words before them."""
    scores = np.full((1, 8, 5), -2.0)
    scores[0, :4, 1] = 1.5
    scores[0, 4:, END] = 2.0
    text, _ = blocks.run(blocks.rule("quota"), scores)
    assert blocks.order(text)[0, 4] == 0
    text, _ = blocks.run(blocks.rule("late_end"), scores, asked=blocks.request(1, (END,)))
    assert blocks.order(text)[0, :4].tolist() == [0, 1, 2, 3]


def test_orders_that_have_no_weight_are_refused():
    with pytest.raises(InputError, match="order='entropy' cannot be weighted"):
        late_end.Config(order="entropy")
