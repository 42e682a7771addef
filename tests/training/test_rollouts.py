"""Rollouts: the way of an answer is kept whole, and its log-probabilities are those of the loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode import api
from jaxdecode.errors import InputError
from jaxdecode.models.config import Denoiser
from jaxdecode.training import denoising, rollouts
from tests import toys
from tests.training import gate

MASK, END = 8, 7
# A prompt of two, and one of three; answers of four and two.
ROWS = [[1, 2, 3, 4, 5, 6], [2, 2, 1, 0, 5]]


@functools.lru_cache
def small(block=0, shifted=False):
    """A random model of one layer over eight tokens and the mask token."""
    filled = Denoiser(mask_token=MASK, block=block, shifted=shifted)
    sizes = {"vocab_size": 9, "num_layers": 1, "layer_windows": (0,)}
    return api.from_params(toys.config(**sizes, denoiser=filled), toys.params(toys.config(**sizes)))


def texts(width=7):
    """The two rows, of different prompts."""
    batch = jax.tree.map(jnp.asarray, gate.batch(ROWS, prompt=2, width=width))
    return gate.Batch(**(vars(batch) | {"weight": batch.weight.at[1, 2].set(0.0)}))


def player(config, lm, batch, end=None):
    """From a key to the tokens of rollouts, their steps and log-probabilities."""
    asked = denoising.own_setting(lm.bound)

    @jax.jit
    def run(key):
        out = rollouts.play(config, asked, lm.params, batch, key, end)
        after = gate.Batch(**(vars(batch) | {"tokens": out.tokens}))
        logprob = rollouts.logprobs(config, asked, lm.params, after, out.step)
        return out.tokens, out.step, logprob

    return lambda seed: jax.tree.map(np.asarray, run(jax.random.key(seed)))


@pytest.mark.parametrize(
    ("settings", "parts", "sizes"),
    [
        ({"temperature": 0.7}, {"shifted": True}, ([1, 2, 1], [1, 1])),
        ({"schedule": "even"}, {"block": 4}, ([1, 1, 1, 1], [1, 1])),
        pytest.param({"steps": 1, "block_length": 2}, {}, ([2, 2], [2]), marks=pytest.mark.slow),
    ],
)
def test_each_token_has_the_law_of_its_own_step(settings, parts, sizes):
    """Pass by pass with what was decided before it, in a plain forward of the row alone."""
    lm, batch, config = small(**parts), texts(), rollouts.Config(**settings)
    tokens, step, logprob = player(config, lm, batch)(0)
    asked = denoising.own_setting(lm.bound)
    bound = rollouts.bound(config, asked, 7)

    @jax.jit
    def law(tokens, segments, masked):
        alone = gate.Batch(
            **(vars(gate.batch([[0] * 7])) | {"tokens": tokens, "segments": segments})
        )
        hidden = denoising.states(asked, lm.params, alone, masked)
        scores = lm.bound.target.logits(lm.params, hidden)[0, :, :MASK]
        return jax.nn.log_softmax(scores / config.temperature)

    for row, size in enumerate(sizes):
        text, first = ROWS[row], 2 + row
        np.testing.assert_array_equal(tokens[row, :first], text[:first])
        assert (step[row, :first] == -1).all() and (step[row, len(text) :] == -1).all()
        own = step[row, first : len(text)]
        assert np.bincount(own).tolist() == size and own.max() < bound
        for number in range(own.max() + 1):
            here = slice(row, row + 1)
            found = np.asarray(law(tokens[here], batch.segments[here], step[here] >= number))
            for place in np.flatnonzero(step[row] == number):
                wanted = float(found[place, tokens[row, place]])
                assert logprob[row, place] == pytest.approx(wanted, abs=2e-5)
    assert not logprob[step < 0].any() and tokens.max() < MASK


def test_an_end_ends_an_answer():
    """What is behind it stays undecided, or counts as ends; the far end is held back."""
    lm, batch = small(), texts(width=12)
    batch = denoising.filled(batch, END)
    config = rollouts.Config(block_length=2)
    play, bound = player(config, lm, batch, END), 6 * 2
    ended = 0
    for seed in range(4):
        tokens, step, logprob = play(seed)
        read = np.asarray(rollouts.read(jnp.asarray(tokens), batch, END))
        counts = np.asarray(rollouts.answers(batch))
        for row in range(2):
            left = np.flatnonzero(step[row] == bound)
            ends = np.flatnonzero((tokens[row] == END) & (step[row] >= 0) & (step[row] < bound))
            if not len(left):
                continue
            ended += 1
            assert ends[0] < left[0] and not logprob[row, left].any()
            assert (read[row, ends[0] :] == END).all()
            keep = counts[row] & (np.arange(12) < ends[0])
            np.testing.assert_array_equal(read[row, keep], tokens[row, keep])
    assert ended


def test_weights_by_hand():
    """Two steps of one and two tokens; one step; none. 5 stands for what stayed undecided."""
    step = jnp.asarray([[-1, 0, 1, 1], [-1, 5, 2, 2], [-1, -1, -1, -1]])
    wanted = [[0, 0.5, 0.25, 0.25], [0, 0, 0.5, 0.5], [0, 0, 0, 0]]
    np.testing.assert_allclose(rollouts.by_step(step, 5), wanted)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [({}, 9), ({"steps": 8}, 8), ({"schedule": "even"}, 256), ({"block_length": 32}, 48)],
)
def test_bound_on_steps(settings, wanted):
    asked = denoising.own_setting(small().bound)
    assert rollouts.bound(rollouts.Config(**settings), asked, 256) == wanted


def test_settings_that_cannot_be_used():
    for settings in (
        {"temperature": 0.0},
        {"steps": -1},
        {"end_weight": 2.0},
        {"block_length": -1},
    ):
        with pytest.raises(InputError, match=next(iter(settings))):
            rollouts.Config(**settings)
    with pytest.raises(InputError, match="schedule='odd'"):
        rollouts.Config(schedule="odd")
