"""Guidance is the mix of two texts' scores that it says, in one pass."""

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.drafters import guided
from jaxdecode.errors import InputError
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]


def generate(lm, **asked):
    return jd.generate(lm, PROMPTS, **({"method": "cfg", "max_new_tokens": 12} | asked))


@pytest.mark.parametrize("parts", [{}, {"block": 8, "shifted": True}])
def test_scores_are_the_mix_of_a_text_and_the_text_without_its_prompt(parts):
    """All slots in one step, against two plain passes. The shifted model sees only its blocks."""
    lm, w = toys.denoiser(**parts), 1.5
    mask = lm.config.denoiser.mask_token
    out = generate(lm, guidance=w, steps=1)
    num_fit = 0
    for prompt, tokens, logprobs in zip(PROMPTS, out.tokens, out.logprobs, strict=True):
        with_prompt = toys.whole(lm, [*prompt, *[mask] * 12])
        without = toys.whole(lm, [mask] * (len(prompt) + 12))
        scores = without + (w + 1) * (with_prompt - without)
        shift = lm.config.denoiser.shifted
        first = slice(len(prompt) - shift, len(prompt) - shift + (12 if not parts else 1))
        scores = scores[first]
        scores[:, mask] = -np.inf
        size = len(scores)
        assert tokens[:size] == scores.argmax(-1).tolist()
        law = scores.max(-1) - np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1))
        law -= scores.max(-1)
        np.testing.assert_allclose(logprobs[:size], law, atol=1e-4)
        num_fit += size
    assert num_fit == (36 if not parts else 3)


def test_no_guidance_and_nothing_hidden_are_the_plain_sampler():
    plain = generate(toys.denoiser(), method="llada")
    off = generate(toys.denoiser(), guidance=0.0)
    assert off.tokens == plain.tokens and off.steps == plain.steps
    assert [s.tokens_forwarded for s in off.stats] == [s.tokens_forwarded for s in plain.stats]
    same = generate(toys.denoiser(), hidden_share=0.0)
    assert same.tokens == plain.tokens and same.steps == plain.steps


def test_guidance_changes_the_text_and_counts_both_texts():
    plain = generate(toys.denoiser(), method="llada")
    out = generate(toys.denoiser())
    assert out.tokens != plain.tokens
    for ours, theirs in zip(out.stats, plain.stats, strict=True):
        assert ours.nfe == theirs.nfe
        assert ours.tokens_forwarded == 2 * theirs.tokens_forwarded


def test_a_share_is_hidden_anew_in_every_step():
    one, two = (generate(toys.denoiser(), hidden_share=0.5, seed=seed) for seed in (0, 1))
    again = generate(toys.denoiser(), hidden_share=0.5)
    assert one.tokens == again.tokens and one.tokens != two.tokens


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"guidance": -1}, "guidance=-1 is not valid"),
        ({"hidden_share": 1.5}, "hidden_share=1.5 is not valid"),
        ({"reuse": "dual", "block_length": 8}, "reuse='dual' does not go with guidance=1.0"),
    ],
)
def test_options_that_do_not_fit_are_refused(asked, message):
    with pytest.raises(InputError, match=message):
        guided.Config(**asked)
