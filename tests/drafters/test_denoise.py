"""Blocks, and what they reuse of keys and values: exact where it says so, row by row."""

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.errors import InputError
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9], [8] * 16]


def generate(lm, prompts=PROMPTS, **asked):
    return jd.generate(lm, prompts, method="llada", **({"max_new_tokens": 30} | asked))


def assert_equal(ours, theirs):
    assert ours.tokens == theirs.tokens and ours.steps == theirs.steps
    for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("law", [{}, {"temperature": 1.0, "seed": 3}])
@pytest.mark.parametrize("shifted", [False, True])
def test_reuse_of_earlier_blocks_is_exact_where_blocks_see_nothing_later(shifted, law):
    lm = toys.denoiser(block=8, shifted=shifted)
    reused, whole = generate(lm, **law), generate(lm, reuse="none", **law)
    assert_equal(reused, whole)
    for a, b in zip(reused.stats, whole.stats, strict=True):
        assert a.nfe == b.nfe and a.tokens_forwarded < b.tokens_forwarded / 2


@pytest.mark.parametrize("reuse", ["prefix", "dual"])
@pytest.mark.parametrize("shifted", [False, True])
def test_what_is_renewed_at_every_step_is_as_without_reuse(shifted, reuse):
    """A block that is filled in one step is only ever scored by the pass that renews."""
    lm, asked = toys.denoiser(shifted=shifted), {"block_length": 5, "steps": 1}
    assert_equal(generate(lm, reuse=reuse, **asked), generate(lm, reuse="none", **asked))


@pytest.mark.parametrize("reuse", ["prefix", "dual"])
def test_rows_that_do_not_renew_keep_their_keys_while_others_do(reuse):
    """Rows of the same sizes with blocks that end at different steps."""
    lm = toys.denoiser()
    asked = dict(reuse=reuse, block_length=8, temperature=1.0, max_new_tokens=32)
    asked |= dict(method="fast_dllm", threshold=0.08)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 60, size=rng.integers(1, 9)).tolist() for _ in range(8)]
    out = jd.generate(lm, prompts, **asked)
    nfe = [stats.nfe for stats in out.stats]
    assert len(set(nfe)) > 2, "rows renew at different steps"
    for i, prompt in enumerate(prompts):
        alone = jd.generate(lm, [prompt], **asked)
        assert (out.tokens[i], out.steps[i], nfe[i]) == (
            alone.tokens[0],
            alone.steps[0],
            alone.stats[0].nfe,
        )


def test_reuse_is_only_an_approximation_where_the_text_sees_itself_whole():
    lm = toys.denoiser()
    whole = generate(lm, block_length=8)
    for reuse in ("prefix", "dual"):
        assert generate(lm, block_length=8, reuse=reuse).tokens != whole.tokens


def test_steps_and_schedules_take_as_many_passes_as_they_say():
    lm = toys.denoiser()
    for asked, nfe in [
        ({}, 32),
        ({"steps": 4}, 4),
        ({"block_length": 8, "steps": 4}, 16),
        ({"schedule": "doubling"}, 6),  # 1 + 2 + 4 + 8 + 16 < 32
        ({"schedule": "doubling", "steps": 5}, 5),
        ({"schedule": "cosine", "steps": 8}, 8),
        ({"schedule": "linear", "steps": 8}, 8),
        ({"order": "random", "steps": 8}, 8),
    ]:
        out = generate(lm, max_new_tokens=32, **asked)
        assert [stats.nfe for stats in out.stats] == [nfe] * 4, asked


def test_the_linear_schedule_is_that_of_the_release():
    """Note of Dream: 3, 4, 4, 4, 4, 4, 4, 5 of 32 slots in 8 steps; 0, 1, ..., 1, 2 in 32."""
    for steps, wanted in [(8, [3, 4, 4, 4, 4, 4, 4, 5]), (32, [0, *[1] * 30, 2])]:
        out = generate(toys.denoiser(), [[5]], max_new_tokens=32, schedule="linear", steps=steps)
        assert np.bincount(out.steps[0], minlength=steps).tolist() == wanted


def test_left_to_right_one_by_one_is_in_order():
    out = generate(toys.denoiser(), order="left_to_right")
    assert out.steps == [list(range(30))] * 4


def test_a_shifted_model_is_read_at_the_slot_before():
    """A model that says, at a position, the token after it writes its text and no other."""
    plain, shifted = toys.denoiser(), toys.denoiser(shifted=True)
    assert generate(plain).tokens != generate(shifted).tokens


REUSES = {
    "none": ({}, {"method": "fast_dllm", "block_length": 8, "reuse": "none"}),
    "prefix": ({}, {"method": "fast_dllm", "block_length": 8, "reuse": "prefix"}),
    "dual": ({}, {"method": "fast_dllm", "block_length": 8}),
    "delayed": ({}, {"method": "dkv_cache", "block_length": 8, "renew_every": 3}),
    "block": ({"block": 8, "shifted": True}, {"method": "fast_dllm", "block_length": 8,
                                              "reuse": "block"}),
    "sub_block": ({"block": 8, "shifted": True}, {"method": "fast_dllm_v2", "sub_block": 4,
                                                  "sub_reuse": True}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("law", [{}, {"temperature": 1.0}])
@pytest.mark.parametrize("name", REUSES)
def test_a_thousand_rows_of_random_ragged_batches_are_themselves(name, law):
    """Under a threshold that rows pass at different steps."""
    parts, asked = REUSES[name]
    lm = toys.denoiser(**parts)
    asked = law | asked | {"max_new_tokens": 20}
    if asked["method"] != "dkv_cache":
        asked["threshold"] = 0.06
    rng = np.random.default_rng(2)
    size = 48
    prompts = [rng.integers(0, 60, size=rng.integers(1, 20)).tolist() for _ in range(size)]
    alone = [jd.generate(lm, [p], seed=i, **asked) for i, p in enumerate(prompts)]
    different = 0
    for _ in range(250):
        chosen = rng.integers(0, size, 4)
        rows = [prompts[i] for i in chosen]
        out = jd.generate(lm, rows, seed=chosen.tolist(), **asked)
        different += sum(
            (tokens, steps) != (alone[i].tokens[0], alone[i].steps[0])
            for i, tokens, steps in zip(chosen, out.tokens, out.steps, strict=True)
        )
    assert different == 0


def test_blocks_that_are_not_the_models_are_refused_with_those_that_are():
    """Also where the length is the line's own and nobody gave it."""
    with pytest.raises(InputError, match="block_length=32 does not fit.*use block_length=8"):
        jd.generate(toys.denoiser(block=8), [[1]], method="fast_dllm", max_new_tokens=4)
