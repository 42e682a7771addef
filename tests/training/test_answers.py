"""Which tokens are given and which are written, where a text is written as a whole."""

import jax.numpy as jnp
import numpy as np

from jaxdecode.training import answers
from jaxdecode.training.objective import Batch


def packed():
    """A dialogue of two answers, a text without a prompt, and padding."""
    segments = np.asarray([[1, 1, 1, 1, 1, 1, 2, 2, 2, 0]])
    weight = np.asarray([[0, 0, 1, 0, 1, 1, 1, 1, 1, 0]], np.float32)
    positions = np.asarray([[0, 1, 2, 3, 4, 5, 0, 1, 2, 0]])
    return Batch(tokens=segments, positions=positions, segments=segments, weight=weight)


def test_the_last_answer_is_written_and_at_least_one_token_is_given():
    parts = answers.parts_of(packed(), 8)
    assert parts.source[0].tolist() == [True] * 4 + [False, False, True] + [False] * 3
    assert parts.answer[0].tolist() == [False] * 4 + [True, True, False, True, True, False]
    assert parts.places[0, [4, 5, 7, 8]].tolist() == [0, 1, 0, 1]
    assert parts.length[0, [0, 5, 6, 8]].tolist() == [2, 2, 2, 2]
    assert not parts.same[0, :6, 6:].any() and not parts.same[0, :, 9].any()


def test_answers_are_cut_where_no_more_can_be_written():
    parts = answers.parts_of(packed(), 1)
    assert parts.answer[0].tolist() == [False] * 4 + [True, False, False, True, False, False]
    assert parts.length[0, 0] == 1


def test_answers_begin_at_the_first_place():
    batch = packed()
    alone = Batch(
        tokens=batch.tokens * jnp.arange(10)[None],
        positions=batch.positions,
        segments=jnp.where(batch.segments == 1, 1, 0),
        weight=batch.weight,
    )
    states = jnp.arange(10.0)[None, :, None]
    read = answers.aligned(alone, states, states, 3)
    assert read.tokens[0, :2].tolist() == [4, 5] and read.states[0, :2, 0].tolist() == [4, 5]
    assert read.real[0].tolist() == [True, True, False]
    assert read.prompt.seen[0].tolist() == [True] * 4 + [False] * 6
