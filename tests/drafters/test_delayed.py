"""Keys and values enter the cache a step after their slot was decided, and stay until renewed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import engine as engines
from jaxdecode.core import loop
from jaxdecode.errors import InputError
from jaxdecode.options import Options
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]


def generate(lm, **asked):
    return jd.generate(lm, PROMPTS, **({"method": "dkv_cache", "max_new_tokens": 24} | asked))


@pytest.mark.parametrize("asked", [{}, {"block_length": 8, "temperature": 0.9}])
@pytest.mark.parametrize("shifted", [False, True])
def test_renewed_at_every_step_it_is_the_plain_sampler(shifted, asked):
    lm = toys.denoiser(shifted=shifted)
    ours = generate(lm, renew_every=1, **asked)
    theirs = generate(lm, method="llada", **asked)
    assert ours.tokens == theirs.tokens and ours.steps == theirs.steps
    for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("renew_every", [0, 4])
def test_a_pass_takes_in_what_was_undecided_a_step_ago(renew_every):
    out = generate(toys.denoiser(), renew_every=renew_every)
    for prompt, stats in zip(PROMPTS, out.stats, strict=True):
        whole = len(prompt) + 24
        # 24 - i slots are undecided before step i, and one was decided the step before.
        full = [i <= 1 or (renew_every > 0 and i % renew_every == 0) for i in range(24)]
        wanted = sum(whole if full[i] else 24 - i + 1 for i in range(24))
        assert stats.tokens_forwarded == wanted and stats.nfe == 24


def test_with_a_shift_the_slot_before_an_undecided_one_goes_in_too():
    """Left to right, that is the one decided last: no pass takes in more. Backwards, it is more."""
    lm = toys.denoiser(shifted=True)
    out = generate(lm, renew_every=0, order="left_to_right")
    for prompt, stats in zip(PROMPTS, out.stats, strict=True):
        wanted = 2 * (len(prompt) + 24) + sum(24 - i + 1 for i in range(2, 24))
        assert stats.tokens_forwarded == wanted


def test_keys_are_stored_a_step_after_their_slot_was_decided_and_then_kept():
    lm = toys.denoiser()
    made = toys.built(lm, "dkv_cache", renew_every=0)
    asked = toys.request(lm, Options(max_new_tokens=24), PROMPTS)
    state = engines.prefilled(made, asked, PROMPTS, 24)
    run = functools.partial(loop.run, target=made.model.target, method=made.method)
    keys = []
    for _ in range(24):
        state = run(made.weights, asked, state, jnp.int32(1))
        keys.append([np.array(key) for key in jax.tree.leaves(state.cache.key)])
    steps = np.asarray(state.canvas.commit_step)
    for row in range(3):
        for slot in np.flatnonzero(steps[row] >= 0):
            decided = steps[row, slot]
            for before in range(2, 23):
                same = all(
                    np.array_equal(
                        keys[before][h][row, ..., slot], keys[before + 1][h][row, ..., slot]
                    )
                    for h in range(2)
                )
                assert same == (before + 1 > decided + 1), (row, slot, decided, before)


def test_a_model_with_blocks_is_refused():
    with pytest.raises(InputError, match="blocks of 8 tokens, whose keys and values are reused"):
        generate(toys.denoiser(block=8))
    with pytest.raises(InputError, match="renew_every=-1"):
        generate(toys.denoiser(), renew_every=-1)
