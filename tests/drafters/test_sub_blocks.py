"""Parts of blocks: which slots are open when, and what their reuse leaves as it was."""

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.errors import InputError
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9], [8] * 16]


def generate(prompts=PROMPTS, shifted=True, **asked):
    lm = toys.denoiser(block=8, shifted=shifted)
    asked = {"max_new_tokens": 30, "threshold": 0.05, "sub_block": 4} | asked
    return jd.generate(lm, prompts, method="fast_dllm_v2", **asked)


@pytest.mark.parametrize("shifted", [False, True])
def test_parts_are_filled_one_after_the_other_and_a_first_slot_alone(shifted):
    out = generate(shifted=shifted)
    for prompt, steps in zip(PROMPTS, out.steps, strict=True):
        parts = {}
        for slot, step in enumerate(steps, start=len(prompt)):
            parts.setdefault(slot // 4, []).append(step)
            if shifted and slot % 8 == 0:
                assert steps.count(step) == 1, "the first slot of a block is decided alone"
        last = -1
        for part in parts.values():
            assert min(part) > last
            last = max(part)


def test_one_part_per_block_of_a_model_that_scores_slots_by_themselves_is_fast_dllm():
    lm = toys.denoiser(block=8)
    ours = generate(shifted=False, sub_block=8)
    theirs = jd.generate(
        lm, PROMPTS, method="fast_dllm", threshold=0.05, reuse="block", block_length=8,
        max_new_tokens=30,
    )  # fmt: skip
    assert ours.tokens == theirs.tokens and ours.steps == theirs.steps


@pytest.mark.parametrize("law", [{}, {"temperature": 1.0, "seed": 3}])
def test_a_part_that_is_filled_at_once_is_as_without_reuse(law):
    """Parts of one slot are only ever scored by passes that renew the block."""
    asked = {"sub_block": 1} | law
    ours, theirs = generate(sub_reuse=True, **asked), generate(**asked)
    assert ours.tokens == theirs.tokens and ours.steps == theirs.steps


@pytest.mark.parametrize("law", [{}, {"temperature": 1.0, "seed": 3}])
def test_reuse_takes_in_less_and_rows_stay_themselves(law):
    asked = {"sub_reuse": True, "threshold": 1.0} | law
    out, whole = generate(**asked), generate(**asked | {"sub_reuse": False})
    assert sum(s.tokens_forwarded for s in out.stats) < 0.8 * sum(
        s.tokens_forwarded for s in whole.stats
    )
    for i, prompt in enumerate(PROMPTS):
        alone = generate([prompt], **asked)
        assert alone.tokens[0] == out.tokens[i] and alone.steps[0] == out.steps[i]
        np.testing.assert_allclose(alone.logprobs[0], out.logprobs[i], atol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="sub_reuse=True is for models with blocks of their own"):
        jd.generate(toys.denoiser(), PROMPTS, method="fast_dllm_v2", block_length=8, sub_reuse=True)
    with pytest.raises(InputError, match="sub_block=0"):
        generate(sub_block=0)
