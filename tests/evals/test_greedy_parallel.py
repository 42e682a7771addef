"""Passes of a text that is known: closed forms on oracles, a plain loop on a network."""

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.evals import greedy_parallel, lists, oracles
from tests import toys

# Passes per block of n slots.
CLOSED = {"copy": lambda n: 1, "sort": lambda n: 1, "shuffle": lambda n: n}


@pytest.mark.parametrize("task", CLOSED)
@pytest.mark.parametrize("block", [6, 3])
def test_what_is_known_takes_one_pass_per_block_and_a_shuffle_one_per_slot(task, block):
    lm, prompts = oracles.lists_model(6), [p.prompt for p in lists.problems(task, 6, 3)]
    asked = {"method": "llada", "block_length": block, "max_new_tokens": 6}
    out = jd.generate(lm, prompts, **asked)
    found = greedy_parallel.passes(lm, prompts, out.tokens, block_length=block)
    assert found == [6 // block * CLOSED[task](block)] * 3
    assert [stats.nfe for stats in out.stats] == [6] * 3


def test_a_text_that_the_model_would_not_say_is_given():
    lm, problem = oracles.lists_model(6), lists.problems("copy", 6, 1)[0]
    other = [problem.new] * 6
    assert greedy_parallel.passes(lm, [problem.prompt], [other]) == [1]
    half = [*problem.items[:3], *other[3:]]
    assert greedy_parallel.passes(lm, [problem.prompt], [half]) == [2]


def plain(lm, prompt, answer, block):
    """Passes of the same with whole texts and sets of open slots."""
    mask, row, count = lm.config.denoiser.mask_token, [*prompt, *answer], 0
    for start in range(len(prompt), len(row), block):
        open = set(range(start, min(start + block, len(row))))
        later = set(range(start + block, len(row)))
        while open:
            shown = [mask if i in open | later else token for i, token in enumerate(row)]
            scores = toys.whole(lm, shown)
            scores[:, mask] = -np.inf
            right = {i for i in open if scores[i].argmax() == row[i]}
            open -= right or open
            count += 1
    return count


def test_passes_of_a_network_are_those_of_a_plain_loop():
    lm, prompts = toys.denoiser(), [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
    out = jd.generate(lm, prompts, method="llada", block_length=8, max_new_tokens=16)
    found = greedy_parallel.passes(lm, prompts, out.tokens, block_length=8)
    pairs = zip(prompts, out.tokens, strict=True)
    assert found == [plain(lm, prompt, answer, 8) for prompt, answer in pairs]
    assert min(found) > 2 and max(found) <= 16
