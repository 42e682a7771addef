"""A row depends on its prompt, its seed and the options: not on its neighbours, nor on the past."""

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.registry import METHODS
from tests import toys

NEW = 12
PROMPTS = [[3, 1, 4, 1, 5, 3, 1], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
NEIGHBOUR = [8, 8, 1, 8, 8, 1, 8, 8, 1, 8, 8]


def laws(name):
    """Greedy and sampled options; a method that refuses a temperature is greedy."""
    sampled = {"temperature": 1.0, "seed": 3}
    return [{}] if "temperature" in METHODS[name].refuses else [{}, sampled]


def decode(name, prompts, **asked):
    more = {"max_new_tokens": NEW} | toys.helpers(name) | asked
    return jd.generate(toys.model(), prompts, method=name, **more)


@pytest.mark.parametrize("name", toys.core_first(toys.LOOP))
def test_a_row_alone_is_the_row_in_any_batch_and_nothing_compiles_twice(name):
    for law in laws(name):
        together = decode(name, PROMPTS, **law)
        for i, prompt in enumerate(PROMPTS):
            alone = decode(name, [prompt], **law)
            assert alone.tokens[0] == together.tokens[i]
            assert alone.finish_reasons[0] == together.finish_reasons[i]
            np.testing.assert_allclose(alone.logprobs[0], together.logprobs[i], atol=1e-4)
        with toys.count_compilations() as compiled:
            mixed = decode(name, [NEIGHBOUR, *PROMPTS[::-1]], **law)
            again = decode(name, PROMPTS, **law)
        assert mixed.tokens[:0:-1] == together.tokens == again.tokens
        assert compiled == [], "shapes that were seen before must not compile again"


def pool(name, size, seed=0):
    """Random rows by law, each with what it gives alone."""
    rng = np.random.default_rng(seed)
    rows = {}
    for number, law in enumerate(laws(name)):
        for _ in range(size):
            # Few different tokens, so that drafters which copy have something to copy.
            prompt = rng.integers(0, 6, rng.integers(1, 31)).tolist()
            row = (prompt, int(rng.integers(100)))
            alone = decode(name, [prompt], **law | {"seed": row[1]})
            rows.setdefault(number, []).append((*row, alone.tokens[0]))
    return rows


def count_different(name, num_batches, size):
    """Rows of random batches that differ from the same row alone."""
    rng, rows, different = np.random.default_rng(1), pool(name, size), 0
    for _ in range(num_batches):
        number = int(rng.integers(len(rows)))
        members = [rows[number][i] for i in rng.integers(0, size, rng.integers(1, 5))]
        law = laws(name)[number] | {"seed": [seed for _, seed, _ in members]}
        out = decode(name, [prompt for prompt, _, _ in members], **law)
        different += sum(
            ours != alone for ours, (_, _, alone) in zip(out.tokens, members, strict=True)
        )
    return different


@pytest.mark.parametrize("name", toys.core_first(toys.LOOP))
def test_random_ragged_batches(name):
    assert count_different(name, 6, 4) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", toys.LOOP)
def test_a_thousand_random_ragged_batches(name):
    assert count_different(name, 1000, 64) == 0
