"""Blocks end after likely delimiters: against a plain reference, and without any as fixed ones."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.protocols import TargetOutput
from jaxdecode.drafters import adablock
from jaxdecode.errors import InputError
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
SIZE = 61


def speller(text, prompt_length, sure=12.0):
    """A model that always knows which text it is to write."""
    lm = toys.denoiser()
    table = np.zeros((256, SIZE), np.float32)
    table[np.arange(len(text)) + prompt_length, text] = sure

    def forward(params, tokens, mask, cached, taps=(), acts=None):
        return TargetOutput(hidden=jnp.asarray(table)[mask.positions], rows=(), taps={})

    target = lm.target._replace(forward=forward, logits=lambda params, hidden: hidden)
    return dataclasses.replace(lm, target=target)


def test_blocks_are_the_segments_of_a_text_with_delimiters():
    """The note's oracle: delimiters at known places, and every slot known: a pass per segment."""
    segments = [3, 5, 1, 7, 4]
    text = [7] * sum(segments)
    for end in np.cumsum(segments):
        text[end - 1] = 2
    # All delimiters are equally likely here: then the first one ends the block.
    lm = speller(text, 2)
    asked = dict(max_new_tokens=20, delimiters=(2,), block_length=8, reuse="none")
    out = jd.generate(lm, [[5, 5]], method="adablock", **asked)
    assert out.tokens == [text]
    assert np.bincount(out.steps[0]).tolist() == segments
    assert out.stats[0].nfe == len(segments)
    fixed = jd.generate(lm, [[5, 5]], method="adablock", **asked | {"min_delimiter": 2.0})
    assert np.bincount(fixed.steps[0]).tolist() == [8, 8, 4]


def test_a_delimiter_out_of_reach_ends_nothing():
    text = [7] * 15 + [2]
    asked = dict(max_new_tokens=16, delimiters=(2,), block_length=4, reuse="none")
    out = jd.generate(speller(text, 1), [[5]], method="adablock", reach=8, **asked)
    assert np.bincount(out.steps[0]).tolist() == [4, 4, 8]


@pytest.mark.parametrize("reuse", ["none", "dual"])
def test_without_delimiters_blocks_are_fixed(reuse):
    lm, asked = toys.denoiser(), dict(block_length=8, max_new_tokens=30, threshold=0.1, reuse=reuse)
    ours = jd.generate(lm, PROMPTS, method="adablock", delimiters=[1], min_delimiter=2.0, **asked)
    theirs = jd.generate(lm, PROMPTS, method="fast_dllm", **asked)
    assert ours.tokens == theirs.tokens and ours.steps == theirs.steps
    assert [s.nfe for s in ours.stats] == [s.nfe for s in theirs.stats]
    assert [s.tokens_forwarded for s in ours.stats] == [s.tokens_forwarded for s in theirs.stats]


def reference(lm, prompt, new, *, delimiters, block_length, reach, min_delimiter, threshold):
    """The published loop, row by row and with whole passes; also the length of every block."""
    mask, end = lm.config.denoiser.mask_token, len(prompt) + new
    tokens, blocks = np.array([*prompt, *[mask] * new]), []
    open = np.arange(end) >= len(prompt)
    while open.any():
        start, stop = int(open.argmax()), None
        while stop is None or open[start:stop].any():
            scores = toys.whole(lm, np.where(open, mask, tokens))
            law = np.exp(scores - scores.max(-1, keepdims=True))
            law[:, mask] = 0
            law /= law.sum(-1, keepdims=True)
            best, sure = law.argmax(-1), law.max(-1)
            if stop is None:
                ahead = [
                    i
                    for i in range(start, min(start + reach, end))
                    if open[i] and best[i] in delimiters
                ]
                found = max(ahead, key=lambda i: sure[i], default=None)
                stop = min(start + block_length, end)
                if found is not None and sure[found] >= min_delimiter:
                    stop = found + 1
                blocks.append(stop - start)
            inside = [i for i in range(start, stop) if open[i]]
            most = max(inside, key=lambda i: sure[i])
            for i in inside:
                if sure[i] >= threshold or i == most:
                    tokens[i], open[i] = best[i], False
    return tokens[len(prompt) :].tolist(), blocks


def test_tokens_are_those_of_the_published_loop():
    lm = toys.denoiser()
    asked = dict(delimiters=tuple(range(15)), block_length=5, reach=12)
    asked |= dict(min_delimiter=0.06, threshold=0.12)
    out = jd.generate(lm, PROMPTS, method="adablock", max_new_tokens=24, reuse="none", **asked)
    lengths = set()
    for prompt, tokens in zip(PROMPTS, out.tokens, strict=True):
        wanted, blocks = reference(lm, prompt, 24, **asked)
        assert tokens == wanted
        lengths |= set(blocks)
    assert len(lengths) > 2, "blocks of several lengths"


def test_line_ends_are_found_in_the_tokenizer():
    tokenizer = SimpleNamespace(token_bytes=[b"a", b"\n", b" \n\n", b"b\n", b"", b" "])
    assert adablock.line_ends(tokenizer) == (1, 2)


def test_options_that_do_not_fit_are_refused():
    asked = dict(method="adablock", max_new_tokens=8)
    for model, options, message in [
        (toys.denoiser(), {}, "no line end was found"),
        (toys.denoiser(), {"delimiters": [99]}, "delimiters=99 is out of range"),
        (toys.denoiser(block=8), {"delimiters": [1], "reuse": "none"}, "blocks of 8 tokens, which"),
        (toys.denoiser(), {"delimiters": [1], "reach": 4}, "reach=4 is less than block_length=32"),
    ]:
        with pytest.raises(InputError, match=message):
            jd.generate(model, PROMPTS, **asked, **options)
