"""The walk down nested texts, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.core.types import Nested
from jaxdecode.verifiers import nested

# Three texts over four slots; the last slot is decided already.
TOKENS = jnp.array([[5, 6, 7, 0], [5, 1, 7, 0], [2, 2, 2, 0]])
LOGPROB = jnp.log(jnp.array([[0.5, 0.9, 0.5, 1.0], [0.3, 1.0, 0.8, 1.0], [0.4, 1.0, 1.0, 1.0]]))
OPEN = jnp.array([True, True, True, False])


def nest(slot, token, valid, guesses) -> Nested:
    return Nested(
        tokens=jnp.zeros((len(valid), 4), jnp.int32),
        guesses=jnp.array(guesses, bool),
        slot=jnp.array(slot),
        token=jnp.array(token),
        valid=jnp.array(valid),
    )


@pytest.mark.parametrize(
    ("slot", "token", "valid", "picked", "tokens"),
    [
        # Nothing was tried: the likeliest slot takes its token.
        ([0, 0], [0, 0], [False, False], [1], [5, 6, 7]),
        # The first text is right, the second fills the right slot with another token.
        ([1, 2], [6, 9], [True, True], [1, 2], [5, 6, 7]),
        # Both are right: the last slot is told by the last text.
        ([1, 2], [6, 7], [True, True], [0, 1, 2], [2, 6, 7]),
        # The first is wrong, so that the second does not count.
        ([0, 2], [5, 7], [True, True], [1], [5, 6, 7]),
    ],
)
def test_steps_of_a_chain_by_hand(slot, token, valid, picked, tokens):
    tried = nest(slot, token, valid, guesses=[[1, 0], [1, 1]])
    found = nested._walk(nested._reached, OPEN, tried, TOKENS, LOGPROB)
    assert np.flatnonzero(found.picked).tolist() == picked
    assert found.tokens[:3].tolist() == tokens
    assert found.logprob.shape == (4,)
    # Every text that was reached has one step more.
    assert found.text == len(picked) - 1
    assert found.last == {1: 1, 2: 2, 3: 0}[len(picked)]


@pytest.mark.parametrize(
    ("slot", "token", "valid", "picked", "tokens"),
    [
        # The guess of rank 1 comes first: its text, not that of rank 0, is read, and then both's.
        ([2, 1], [2, 6], [True, True, True], [0, 1, 2], [8, 6, 2]),
        # Likewise, but the text of both does not exist.
        ([2, 1], [2, 6], [True, True, False], [1, 2], [2, 6, 2]),
        # The guess of rank 0 comes first; what its text wants is no guess.
        ([1, 0], [6, 9], [True, True, True], [1, 2], [5, 6, 7]),
    ],
)
def test_steps_of_sets_by_hand(slot, token, valid, picked, tokens):
    tried = nest(slot, token, valid, guesses=[[1, 0], [0, 1], [1, 1]])
    wanted = jnp.concatenate([TOKENS, jnp.array([[8, 8, 8, 0]])])
    sure = jnp.concatenate([LOGPROB, jnp.zeros((1, 4))])
    # The text of rank 1 wants slot 2 with token 2.
    sure = sure.at[2, 0].set(-1.0)
    found = nested._walk(nested._reached, OPEN, tried, wanted, sure)
    assert np.flatnonzero(found.picked).tolist() == picked
    assert found.tokens[:3].tolist() == tokens


def test_slots_of_equal_probability_come_in_their_order():
    """As in `llada`, which compares probabilities: those of -1e-9 and 0 are both 1."""
    none = nest([0], [0], [False], guesses=[[1]])
    sure = jnp.array([[-1.0, -1e-9, 0.0, 0.0]] * 2)
    found = nested._walk(nested._reached, OPEN, none, TOKENS[:2], sure)
    assert np.flatnonzero(found.picked).tolist() == [1]
