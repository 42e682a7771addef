"""Rollback and fallback against plain Python, and the strict setting."""

import functools

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.errors import InputError
from jaxdecode.verifiers import bild
from tests import toys
from tests.verifiers import plain

PROMPTS = [[3, 1, 4, 1, 5, 9], [9, 9, 9], [2, 6, 5, 3]]
NEW = 16


def _law(lm, tokens):
    scores = toys.full_logits(lm, tokens)[0][-1].astype(np.float64)
    law = np.exp(scores - scores.max())
    return law / law.sum()


def _run(**asked):
    asked = {"max_new_tokens": NEW, "num_draft": 4, "draft": toys.model(seed=5)} | asked
    return jd.generate(toys.model(), PROMPTS, method="bild", **asked)


@pytest.mark.parametrize("law", [{}, {"temperature": 0.9, "seed": 4}])
def test_without_patience_it_is_plain_decoding(law):
    plain_out = jd.generate(toys.model(), PROMPTS, method="ar", max_new_tokens=NEW, **law)
    assert _run(rollback=0, min_prob=0.05, **law).tokens == plain_out.tokens


@pytest.mark.parametrize(("rollback", "min_prob"), [(3.0, 0.08), (5.0, 0.0)])
def test_every_step_is_that_of_plain_python(rollback, min_prob):
    lm, small = toys.model(), toys.model(seed=5)

    def propose(end, row, num_draft):
        draft = []
        # The draft model leaves the row's last slot to the target.
        while len(draft) < min(num_draft, end - len(row) - 1):
            law = _law(small, row + draft)
            if law.max() < min_prob:
                break
            draft.append(int(law.argmax()))
        return draft

    def keeps(row, draft, index, scores):
        shifted = scores.astype(np.float64) - scores.max()
        surprise = np.log(np.exp(shifted).sum()) - shifted[draft[index]]
        return surprise <= rollback

    out = _run(rollback=rollback, min_prob=min_prob)
    for prompt, tokens, stats in zip(PROMPTS, out.tokens, out.stats, strict=True):
        until = functools.partial(propose, len(prompt) + NEW)
        assert (tokens, stats.nfe) == plain.decode(lm, prompt, NEW, 4, keeps, until)
    assert sum(stats.nfe for stats in out.stats) < NEW * len(PROMPTS), "some drafts stay"


def test_bad_options_are_named():
    with pytest.raises(InputError, match="rollback=-1"):
        bild.Config(rollback=-1)
