"""Typical acceptance: the rule by hand, its strict setting, and its threshold."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.errors import InputError
from jaxdecode.evals import enumeration
from jaxdecode.verifiers import typical
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5, 3, 1, 4, 1], [9, 9, 9, 9], [2, 6, 5, 3, 5, 2, 6, 5]]
STRICT = {"epsilon": 1.0, "delta": 1e9}


def law_by_hand(target, tokens, epsilon, delta):
    enough = min(epsilon, delta * np.exp((target * np.log(target)).sum()))
    for token in tokens:
        if target[token] > enough:
            return np.eye(len(target))[token]
    return target


@pytest.mark.parametrize(("epsilon", "delta"), [(0.09, 0.3), (0.2, 1.0), (0.01, 0.9)])
def test_the_law_is_that_of_the_rule(epsilon, delta):
    verifier = typical.make(typical.Config(epsilon=epsilon, delta=delta), None)
    drafts = enumeration.likeliest((3,))
    for case in list(enumeration.tables(20, vocab_size=6))[6:]:
        tokens = np.asarray(drafts(case.draft, 0).proposal.tokens)[0, 1:]
        law = enumeration.emitted(verifier, drafts, case).sum(-1)
        by_hand = law_by_hand(case.target[0], tokens, epsilon, delta)
        np.testing.assert_allclose(law, by_hand, atol=1e-6)


@pytest.mark.parametrize("law", [{}, {"temperature": 0.9, "seed": 4}])
def test_the_strict_setting_is_plain_decoding(law):
    lm, asked = toys.model(), dict(max_new_tokens=20) | law
    plain = jd.generate(lm, PROMPTS, method="ar", **asked)
    out = jd.generate(lm, PROMPTS, method="typical_acceptance", **STRICT, **asked)
    assert out.tokens == plain.tokens
    if not law:
        assert jd.generate(lm, PROMPTS, method="typical_acceptance", **asked).tokens == plain.tokens


def test_a_lower_threshold_accepts_more():
    drafts = enumeration.likeliest((2, 2))
    for case in enumeration.tables(10, vocab_size=5):
        counts = [
            enumeration.num_accepted(
                typical.make(typical.Config(epsilon=epsilon, delta=1e9), None), drafts, case
            )
            for epsilon in (1.0, 0.5, 0.2, 0.05)
        ]
        # One passing token may lead to a place where fewer pass, so only one level is monotone.
        first = enumeration.likeliest((2,))
        firsts = [
            enumeration.num_accepted(
                typical.make(typical.Config(epsilon=epsilon, delta=1e9), None), first, case
            )
            for epsilon in (1.0, 0.5, 0.2, 0.05)
        ]
        assert (np.diff(firsts) >= -1e-6).all() and counts[-1] >= firsts[-1] - 1e-6


def test_missing_children_do_not_pass():
    verifier = typical.make(typical.Config(), None)
    proposal = enumeration.likeliest((2,))(np.eye(4), 0).proposal
    gone = dataclasses.replace(proposal, valid=proposal.valid.at[:, 1:].set(False))
    case = enumeration.Tables(target=np.full((4, 4), 0.25), draft=np.eye(4))
    law = enumeration.emitted(
        verifier, lambda table, pending: enumeration.Drafts(np.ones(1), gone), case
    )
    np.testing.assert_allclose(law.sum(-1), 0.25, atol=1e-6)
    assert jnp.isfinite(law).all()


@pytest.mark.parametrize("asked", [{"epsilon": 0}, {"delta": -1}, {"epsilon": "much"}])
def test_bad_options_are_named(asked):
    with pytest.raises(InputError, match=next(iter(asked))):
        typical.Config(**asked)
