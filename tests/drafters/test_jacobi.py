"""Jacobi decoding against the iteration written out in Python."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import engine, options
from jaxdecode.drafters import jacobi
from jaxdecode.errors import InputError
from jaxdecode.sampling import noise
from tests import toys

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


def next_guess(row, previous):
    """What followed `previous` where it last stood before the row's end, or itself."""
    places = [i for i in range(len(row) - 1) if row[i] == previous]
    return row[places[-1] + 1] if places else previous


def iterate(lm, prompt, num_new, window, temperature=0.0, seed=0, most=math.inf):
    """Tokens, and how many each step commits; guesses are kept after `most` corrections."""
    key, row, counts = jnp.asarray(noise.row_key(seed, prompt)), list(prompt), []

    def drawn(tokens):
        """The target's token after each of the last window + 1 tokens."""
        scores = toys.full_logits(lm, tokens)[0]
        picked = []
        for end in range(len(tokens) - window, len(tokens) + 1):
            row_scores = scores[end - 1]
            if temperature:
                gumbel = noise.gumbel(key, end, purpose=noise.TOKEN, size=len(row_scores))
                row_scores = row_scores / temperature + np.asarray(gumbel)
            picked.append(int(row_scores.argmax()))
        return picked

    def extend(guesses):
        while len(guesses) < window:
            guesses.append(next_guess(row, guesses[-1] if guesses else row[-1]))
        return guesses

    guesses, ages = extend([]), [0] * window
    while len(row) < len(prompt) + num_new:
        answers = drawn(row + guesses)
        count = 1
        while count <= window and (
            guesses[count - 1] == answers[count - 1] or ages[count - 1] >= most
        ):
            count += 1
        row += [*guesses[: count - 1], answers[count - 1]]
        counts.append(count)
        guesses = extend(answers[count:])
        ages = ([age + 1 for age in ages[count:]] + [0] * count)[:window]
    return row[len(prompt) :][:num_new], counts


@pytest.mark.parametrize("law", [{}, {"temperature": 0.9, "seed": 4}])
@pytest.mark.parametrize("window", [1, 5])
def test_every_step_is_that_of_the_iteration(window, law):
    lm = toys.model()
    out = jd.generate(lm, [PROMPT], method="jacobi", max_new_tokens=24, window=window, **law)
    tokens, counts = iterate(lm, PROMPT, 24, window, **law)
    steps = [step for step, count in enumerate(counts) for _ in range(count)]
    assert out.tokens == [tokens] and out.steps == [steps[:24]]


def test_plain_decoding_is_a_fixed_point():
    """A window that holds the target's own tokens is confirmed whole."""
    lm, window = toys.model(), 6
    wanted = jd.generate(lm, [PROMPT], method="ar", max_new_tokens=window + 1).tokens[0]
    method = toys.method(lm, "jacobi", window=window)
    oracle = method.drafter._replace(init=lambda *_: jnp.asarray([wanted[:window]], jnp.int32))
    request = toys.request(lm, options.Options(), [PROMPT], batch=1)
    built = toys.engine(lm, method._replace(drafter=oracle))
    (done,) = engine.run(built, request, [PROMPT], window + 1, iter([1000]))
    assert done.stats.nfe[0] == 1 and done.new_tokens(0, len(PROMPT)).tolist() == wanted


def test_new_places_continue_the_row():
    row = jnp.asarray([7, 8, 9, 7, 5, 9, 0, 0])
    got = jacobi.follow(row, jnp.int32(5), jnp.asarray([1, 1, 1, 1]), jnp.int32(0))
    assert got.tolist() == [7, 5, 9, 7], "9 was followed by 7, whose latest place is before 5"
    kept = jacobi.follow(row, jnp.int32(5), jnp.asarray([2, 7, 1, 1]), jnp.int32(2))
    assert kept.tolist() == [2, 7, 5, 9]
    alone = jacobi.follow(row, jnp.int32(5), jnp.asarray([2, 1, 1, 1]), jnp.int32(1))
    assert alone.tolist() == [2, 2, 2, 2], "a token without a past is repeated"


def test_window_is_checked():
    with pytest.raises(InputError, match="window=0"):
        jd.generate(toys.model(), [PROMPT], method="jacobi", window=0)
