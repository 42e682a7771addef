"""K-SEQ: exact by enumeration, and within its bound of the optimum."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.evals import enumeration
from jaxdecode.evals.optimal import optimal_acceptance
from jaxdecode.trees import walk
from jaxdecode.verifiers import kseq

VERIFIER = kseq.make(kseq.Config(), None)


@pytest.mark.parametrize(
    ("number", "length", "vocab_size"), [(1, 3, 4), (2, 2, 4), (2, 3, 3), (4, 1, 4), (3, 2, 3)]
)
def test_what_is_emitted_has_the_targets_law(number, length, vocab_size):
    drafter = enumeration.chains(number, length)
    assert enumeration.variation(VERIFIER, drafter, vocab_size=vocab_size) <= 1e-6


def test_a_factor_that_is_too_small_fails(monkeypatch):
    monkeypatch.setattr(kseq, "smallest_factor", lambda target, draft, number: jnp.float32(1.0))
    assert enumeration.variation(kseq.make(kseq.Config(), None), enumeration.chains(3, 1)) > 1e-2


def test_counting_the_slots_instead_of_the_drafts_fails():
    def rule(visit):
        return jnp.log(kseq.law(visit._replace(valid=jnp.ones_like(visit.valid))))

    verifier = walk.make(rule, draws="with_replacement")
    assert enumeration.variation(verifier, enumeration.chains(2, 2)) > 1e-2


def test_drafts_without_replacement_fail():
    assert enumeration.variation(VERIFIER, enumeration.without_replacement((2, 2))) > 1e-2


def test_the_factor_is_the_smallest_without_a_negative_residual():
    rng = np.random.default_rng(1)
    for number in (2, 3, 8):
        for _ in range(20):
            p, q = rng.dirichlet(np.full(6, 0.5), 2)
            found = float(kseq.smallest_factor(jnp.float32(p), jnp.float32(q), jnp.float32(number)))

            def lack(rho, p=p, q=q, number=number):
                one = np.minimum(q, p / rho).sum()
                return 1 - (1 - one) ** number - rho * one

            assert 1 <= found <= number and lack(found) <= 1e-6
            assert found == 1 or lack(found * (1 - 1e-4)) > -1e-6


def test_acceptance_is_within_its_bound_of_the_optimum():
    """Of the tests alone, without the free descent of a token drawn from what is left."""
    rng = np.random.default_rng(2)
    for _, number in itertools.product(range(50), (1, 2, 3)):
        p, q = rng.dirichlet(np.full(5, 0.6), 2)
        factor = kseq.smallest_factor(jnp.float32(p), jnp.float32(q), jnp.float32(number))
        accepted = 1 - (1 - np.minimum(q, p / float(factor)).sum()) ** number
        best = optimal_acceptance(p, q, number, "with_replacement")
        assert (1 - np.exp(-1)) * best - 1e-6 <= accepted <= best + 1e-6


def test_acceptance_of_the_rule_is_never_less_than_that_of_its_tests():
    for case in enumeration.tables(12, vocab_size=4):
        p = np.eye(4)[case.target[0].argmax()] if case.greedy else case.target[0]
        for number in (1, 2, 3):
            found = enumeration.num_accepted(VERIFIER, enumeration.chains(number, 1), case)
            best = optimal_acceptance(p, case.draft[0], number, "with_replacement")
            assert (1 - np.exp(-1)) * best - 1e-6 <= found <= best + 1e-6
