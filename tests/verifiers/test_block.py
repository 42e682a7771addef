"""Block verification: exact by enumeration, and never behind the rule of single tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.core.protocols import TargetOutput, Weights
from jaxdecode.core.types import Canvas, Proposal, Request, Sampling
from jaxdecode.errors import InputError
from jaxdecode.evals import enumeration
from jaxdecode.sampling import residual
from jaxdecode.verifiers import block, rejection, sample_match

VERIFIER = block.make(block.Config(), None)


@pytest.mark.parametrize(("length", "vocab_size"), [(1, 6), (2, 5), (3, 4)])
def test_what_is_emitted_has_the_targets_law(length, vocab_size):
    drafter = enumeration.chains(1, length)
    assert enumeration.variation(VERIFIER, drafter, vocab_size=vocab_size) <= 1e-6


def test_it_never_accepts_less_than_token_by_token():
    token_rule, more = rejection.make(rejection.Config(), None), 0
    for case in enumeration.tables(30):
        for length in (1, 2, 3):
            drafter = enumeration.chains(1, length)
            ours = enumeration.num_accepted(VERIFIER, drafter, case)
            theirs = enumeration.num_accepted(token_rule, drafter, case)
            assert ours >= theirs - 1e-6
            more += ours > theirs + 1e-3
    assert more > 10


def test_the_papers_example():
    rows = enumeration.Tables(
        target=np.tile([1 / 3, 2 / 3], (2, 1)), draft=np.tile([2 / 3, 1 / 3], (2, 1))
    )
    found = enumeration.num_accepted(VERIFIER, enumeration.chains(1, 2), rows)
    assert found == pytest.approx(11 / 9, abs=1e-6)


def _twin():
    """The verifier anew: compiled programs are kept by the identity of its functions."""
    outcomes = VERIFIER.outcomes
    return VERIFIER._replace(outcomes=lambda *args: outcomes(*args))


def test_the_residual_of_the_token_rule_fails(monkeypatch):
    laws = block.laws

    def wrong(target, draft, tokens, valid):
        length, right = laws(target, draft, tokens, valid)
        last = jnp.arange(tokens.shape[0]) == valid.sum() - 1
        of_token = jax.vmap(residual.normalise)(target - draft, target)
        return length, jnp.where(last[:, None], right, of_token)

    monkeypatch.setattr(block, "laws", wrong)
    assert enumeration.variation(_twin(), enumeration.chains(1, 3)) > 1e-2


def test_the_first_failure_instead_of_the_last_success_fails(monkeypatch):
    laws = block.laws

    def wrong(target, draft, tokens, valid):
        _, next_law = laws(target, draft, tokens, valid)
        before = jnp.arange(tokens.shape[0] - 1)
        kept = jnp.minimum(target[before, tokens[1:]] / draft[before, tokens[1:]], 1.0)
        reached = jnp.concatenate([jnp.ones(1), jnp.cumprod(kept)])
        return reached - jnp.concatenate([reached[1:], jnp.zeros(1)]), next_law

    monkeypatch.setattr(block, "laws", wrong)
    assert enumeration.variation(_twin(), enumeration.chains(1, 3)) > 1e-2


def _step(num_rows, size, num_draft, temperature, penalty=None):
    """Random arguments of `verify`: prompts of three tokens and greedy-looking drafts."""
    rng = np.random.default_rng(0)
    num_nodes = num_draft + 1
    logits = 2 * rng.normal(size=(num_rows, num_nodes, size))
    draft = np.where(rng.random((num_rows, num_draft)) < 0.8, logits[:, :-1].argmax(-1), 1)
    tokens = np.concatenate([np.full((num_rows, 1), 2), draft], axis=1)
    length = rng.integers(0, num_nodes, num_rows)
    full = np.zeros((num_rows, 16))

    def rows(value):
        return jnp.full(num_rows, value, jnp.int32)

    canvas = Canvas(
        tokens=jnp.asarray(full, jnp.int32).at[:, 2].set(2),
        open=jnp.broadcast_to(jnp.arange(16) > 2, full.shape),
        length=rows(2),
        end=rows(16),
        done=jnp.zeros(num_rows, bool),
        finish=rows(0),
        stop_state=rows(0),
        commit_step=jnp.asarray(full, jnp.int32),
        logprob=jnp.asarray(full, jnp.float32),
    )
    index = jnp.broadcast_to(jnp.arange(num_nodes), (num_rows, num_nodes))
    proposal = Proposal(
        tokens=jnp.asarray(tokens, jnp.int32),
        parent=index - 1,
        depth=index,
        valid=index <= jnp.asarray(length)[:, None],
        max_depth=num_draft,
        draft_probs=jax.nn.one_hot(jnp.roll(jnp.asarray(tokens), -1, 1), size),
    )
    sampling = Sampling(
        temperature=jnp.full(num_rows, temperature, jnp.float32),
        repetition_penalty=None if penalty is None else jnp.full(num_rows, penalty, jnp.float32),
    )
    request = Request(
        key=jax.random.key_data(jax.random.split(jax.random.key(0), num_rows)),
        sampling=sampling,
        stop_tokens=jnp.full(1, -1),
    )
    scores = jnp.asarray(logits, jnp.float32)
    output = TargetOutput(hidden=scores, rows=((), ()), taps={}, logits=scores)
    return Weights(target=None), request, canvas, proposal, output


@pytest.mark.parametrize("penalty", [None, 1.7])
def test_greedy_rows_are_matched_token_by_token(penalty):
    step = _step(200, 7, 4, 0.0, penalty)
    ours = jax.jit(VERIFIER.verify)(*step)
    theirs = jax.jit(sample_match.make(sample_match.Config(), None).verify)(*step)
    np.testing.assert_array_equal(ours.num_accepted, theirs.num_accepted)
    assert len(set(np.asarray(ours.num_accepted).tolist())) == 5
    for row, count in enumerate(np.asarray(ours.num_accepted)):
        keep = slice(0, count + 1)
        np.testing.assert_array_equal(ours.tokens[row, keep], theirs.tokens[row, keep])
        np.testing.assert_allclose(ours.logprob[row, keep], theirs.logprob[row, keep], atol=1e-6)
        np.testing.assert_array_equal(ours.path[row, keep], theirs.path[row, keep])


@pytest.mark.parametrize("verifier", [VERIFIER, rejection.make(rejection.Config(), None)])
def test_the_compiled_step_draws_from_its_outcomes(verifier):
    """Same drafts in every row, other keys: what is drawn against the law that proofs use."""
    num_rows, size = 40_000, 4
    weights, request, canvas, proposal, output = _step(1, size, 2, 1.0)
    law = jnp.broadcast_to(jnp.asarray([0.4, 0.3, 0.2, 0.1]), (1, 3, size))
    proposal = dataclasses.replace(proposal, valid=jnp.ones_like(proposal.valid), draft_probs=law)

    def same(x):
        return jnp.broadcast_to(x, (num_rows, *x.shape[1:]))

    canvas, proposal, output, sampling = jax.tree.map(
        same, (canvas, proposal, output, request.sampling)
    )
    keys = jax.random.key_data(jax.random.split(jax.random.key(1), num_rows))
    request = Request(key=keys, sampling=sampling, stop_tokens=jnp.full(1, -1))
    verdict = jax.jit(verifier.verify)(weights, request, canvas, proposal, output)
    count = np.asarray(verdict.num_accepted)
    last = np.asarray(verdict.tokens)[np.arange(num_rows), count]
    found = np.zeros((3, size))
    np.add.at(found, (count, last), 1)
    one = jax.tree.map(lambda x: x[0], proposal)
    want = np.asarray(verifier.outcomes(output.logits[0], jnp.bool_(False), one, None), float)
    want = want / want.sum() * num_rows
    kept = want > 5
    statistic = ((found - want)[kept] ** 2 / want[kept]).sum()
    assert found[want < 1e-3].sum() == 0
    assert statistic < kept.sum() + 5 * np.sqrt(2 * kept.sum())


def test_trees_and_drafts_without_a_law_are_refused():
    weights, request, canvas, proposal, output = _step(2, 5, 3, 1.0)
    with pytest.raises(InputError, match="decides on single chains"):
        tree = dataclasses.replace(proposal, max_children=2)
        VERIFIER.verify(weights, request, canvas, tree, output)
    with pytest.raises(InputError, match="recorded law"):
        bare = dataclasses.replace(proposal, draft_probs=None)
        VERIFIER.verify(weights, request, canvas, bare, output)
