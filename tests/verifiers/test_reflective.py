"""Reflective verification: against plain Python, its strict setting, and what it leaves behind."""

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.errors import InputError
from jaxdecode.verifiers import reflective
from tests import toys
from tests.verifiers import plain

PROMPTS = [[3, 1, 4, 1, 5, 3, 1, 4, 1], [9, 9, 9, 9], [2, 6, 5, 3, 5, 2, 6, 5]]
# Rows on which the toy, reading the draft twice, keeps tokens that it would not have drawn.
SWAYED = [[38, 31, 16] * 3, [2, 4] * 5, [57, 16, 49] * 3]


def _run(prompts=PROMPTS, **asked):
    asked = {"max_new_tokens": 20, "num_draft": 4} | asked
    return jd.generate(toys.model(), prompts, method="reflective_verify", **asked)


@pytest.mark.parametrize("law", [{}, {"temperature": 0.9, "seed": 4}])
def test_without_reflection_it_is_plain_decoding(law):
    plain_out = jd.generate(toys.model(), PROMPTS, method="ar", max_new_tokens=20, **law)
    assert _run(alpha=0, **law).tokens == plain_out.tokens


@pytest.mark.parametrize("law", [{}, {"temperature": 0.9, "seed": 4}])
def test_reflection_by_a_hair_changes_nothing(law):
    """The rule itself, not the short cut that alpha = 0 takes."""
    plain_out = jd.generate(toys.model(), PROMPTS, method="ar", max_new_tokens=20, **law)
    assert _run(alpha=1e-7, **law).tokens == plain_out.tokens


@pytest.mark.parametrize(("alpha", "probe"), [(0.6, ()), (1.0, (7, 8, 9))])
def test_every_step_is_that_of_plain_python(alpha, probe):
    lm, prompts = toys.model(), PROMPTS + SWAYED

    def keeps(row, draft, index, scores):
        again = [*row, *draft, *(probe or row[-1:]), *draft]
        start = len(again) - len(draft) - 1
        second = toys.full_logits(lm, again)[0][start + index]
        return ((1 - alpha) * scores + alpha * second).argmax() == draft[index]

    out = _run(prompts, alpha=alpha, probe=probe)
    for b, prompt in enumerate(prompts):
        assert (out.tokens[b], out.stats[b].nfe) == plain.decode(lm, prompt, 20, 4, keeps)
    exact = jd.generate(lm, prompts, method="ar", max_new_tokens=20)
    assert out.tokens != exact.tokens, "reflection lets drafts pass"


def test_the_law_raises_the_draft_and_keeps_the_ratios_of_the_others():
    from jaxdecode.trees import walk

    rng = np.random.default_rng(0)
    p = np.float32(rng.dirichlet(np.ones(5)))
    for kept in (0.0, p[2], 0.7, 1.0):
        place = walk.Visit(
            scores=np.log(p),
            greedy=np.bool_(False),
            draft_probs=None,
            tokens=np.array([2]),
            valid=np.array([True]),
            marks=np.float32([kept]),
        )
        law = np.asarray(walk.probs_of(reflective._rule(place), place.greedy))
        want = np.where(np.arange(5) == 2, 0, p)
        want = want / want.sum() * (1 - max(kept, p[2]))
        want[2] = max(kept, p[2])
        np.testing.assert_allclose(law, want, atol=1e-6)


def test_bad_options_are_named():
    with pytest.raises(InputError, match="alpha=2"):
        _run(alpha=2)
    with pytest.raises(InputError, match="probe=61"):
        _run(probe=(61,))
    with pytest.raises(InputError, match="probe='abc'"):
        _run(probe="abc")
