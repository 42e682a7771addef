"""Recursive rejection: exact by enumeration, ordinary speculative sampling with one child."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.errors import InputError
from jaxdecode.evals import enumeration
from jaxdecode.evals.optimal import optimal_acceptance
from jaxdecode.sampling import residual
from jaxdecode.trees import walk
from jaxdecode.verifiers import rejection

ONCE = rejection.make(rejection.Config(), None)
AGAIN = rejection.make(rejection.Config(draws="with_replacement"), None)


@pytest.mark.parametrize(
    ("verifier", "drafter", "vocab_size"),
    [
        (ONCE, enumeration.chains(1, 3), 5),
        (ONCE, enumeration.without_replacement((2, 2)), 4),
        (ONCE, enumeration.without_replacement((2, 1, 1)), 4),
        (ONCE, enumeration.without_replacement((3,)), 6),
        (ONCE, enumeration.without_replacement((4,)), 4),
        (ONCE, enumeration.chains(2, 2), 4),
        (AGAIN, enumeration.chains(1, 3), 4),
        (AGAIN, enumeration.chains(2, 2), 4),
        (AGAIN, enumeration.chains(2, 3), 3),
        (AGAIN, enumeration.chains(3, 2), 3),
    ],
)
def test_what_is_emitted_has_the_targets_law(verifier, drafter, vocab_size):
    assert enumeration.variation(verifier, drafter, vocab_size=vocab_size) <= 1e-6


def _wrong(change):
    """A twin whose law for one child is `change(target, draft, token)`."""

    def rule(visit):
        return jnp.log(change(visit.target_probs(), visit.draft_probs, visit.tokens[0]))

    return walk.make(rule, draws="without_replacement")


def _swapped(target, draft, token):
    kept = residual.accept(draft[token], target[token])
    return ((1 - kept) * residual.normalise(target - draft, target)).at[token].add(kept)


def _no_residual(target, draft, token):
    kept = residual.accept(target[token], draft[token])
    return ((1 - kept) * target).at[token].add(kept)


def _two_percent_too_often(target, draft, token):
    kept = jnp.minimum(1.02 * residual.accept(target[token], draft[token]), 1.0)
    return ((1 - kept) * residual.normalise(target - draft, target)).at[token].add(kept)


@pytest.mark.parametrize("change", [_swapped, _no_residual, _two_percent_too_often])
def test_wrong_twins_of_one_child_fail(change):
    assert enumeration.variation(_wrong(change), enumeration.chains(1, 2)) > 1e-3


def test_the_rule_for_independent_drafts_fails_on_drafts_without_replacement():
    drafter = enumeration.without_replacement((2, 2))
    assert enumeration.variation(AGAIN, drafter) > 1e-2


def test_an_equal_law_of_all_children_fails():
    """The recorded law of the second child is what is left, not the whole law."""
    drafter = enumeration.without_replacement((2,))

    def flat(table, pending):
        drafts = drafter(table, pending)
        even = jnp.full_like(drafts.proposal.draft_probs, 0.25)
        return drafts._replace(proposal=dataclasses.replace(drafts.proposal, draft_probs=even))

    assert enumeration.variation(ONCE, flat) > 1e-2


def test_acceptance_of_one_child_is_the_overlap_of_the_laws():
    for case in enumeration.tables(20, vocab_size=5):
        if not case.greedy:
            found = enumeration.num_accepted(ONCE, enumeration.chains(1, 1), case)
            overlap = np.minimum(case.target[0], case.draft[0]).sum()
            np.testing.assert_allclose(found, overlap, atol=1e-6)


def test_acceptance_stays_below_the_optimum():
    for case in enumeration.tables(20, vocab_size=5):
        target = np.eye(5)[case.target[0].argmax()] if case.greedy else case.target[0]
        for number in (2, 3):
            best = optimal_acceptance(target, case.draft[0], number, "without_replacement")
            drafter = enumeration.without_replacement((number,))
            assert enumeration.num_accepted(ONCE, drafter, case) <= best + 1e-6


def test_unknown_draws_are_refused():
    with pytest.raises(InputError, match="draws='twice'"):
        rejection.Config(draws="twice")
