"""Likeliest tokens and one draw: exact by enumeration, and the best rule for such drafts."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.evals import enumeration
from jaxdecode.verifiers import greedy_multi_draft, rejection
from tests.evals.test_optimal import transport

VERIFIER = greedy_multi_draft.make(greedy_multi_draft.Config(), None)


@pytest.mark.parametrize("branching", [(1, 1, 1), (2, 2), (3, 2), (4,), (2, 1, 1)])
def test_what_is_emitted_has_the_targets_law(branching):
    drafter = enumeration.likeliest_and_one(branching)
    assert enumeration.variation(VERIFIER, drafter, vocab_size=5) <= 1e-6


def test_the_law_may_be_recorded_with_or_without_the_likeliest_tokens():
    drafter = enumeration.likeliest_and_one((2, 2))

    def narrowed(table, pending):
        drafts = drafter(table, pending)
        law = np.array(drafts.proposal.draft_probs)
        np.put_along_axis(law, law.argmax(-1)[..., None], 0.0, -1)
        law = law / np.maximum(law.sum(-1, keepdims=True), 1e-9)
        proposal = dataclasses.replace(drafts.proposal, draft_probs=jnp.asarray(law))
        return drafts._replace(proposal=proposal)

    assert enumeration.variation(VERIFIER, narrowed) <= 1e-6


def test_rejection_sampling_fails_on_such_drafts():
    verifier = rejection.make(rejection.Config(), None)
    assert enumeration.variation(verifier, enumeration.likeliest_and_one((2,))) > 1e-2


def test_acceptance_is_what_a_linear_program_finds():
    for case in enumeration.tables(30, vocab_size=5):
        if case.greedy:
            continue
        for number in (1, 2, 3):
            drafter = enumeration.likeliest_and_one((number,))
            drafts = drafter(case.draft, 0)
            valid = np.asarray(drafts.proposal.valid)[:, 1:]
            tokens = np.asarray(drafts.proposal.tokens)[:, 1:]
            sets = [row[exists] for row, exists in zip(tokens, valid, strict=True)]
            best = transport(case.target[0], sets, drafts.probs)
            found = enumeration.num_accepted(VERIFIER, drafter, case)
            np.testing.assert_allclose(found, best, atol=1e-6)
