"""Prompt tokens: layouts and rates by hand, tokens that see no probe, the loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core import masks
from jaxdecode.core.protocols import Weights
from jaxdecode.errors import InputError
from jaxdecode.evals import toys as smallest
from jaxdecode.heads import ppd
from jaxdecode.training import probed
from jaxdecode.trees import probes, sparse
from tests import toys
from tests.training import gate

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]


def test_a_layout_has_the_masks_of_the_paper():
    # Root with two prompts, candidate 0 with one, candidate 1 with none.
    table = probes.tables([probes.Layout(((0,), (1,)), (2, 1, 0))])
    # There: root, prompt 1, candidates 0 and 1, prompts 1-2 of the root, prompt of candidate 0.
    theirs = [0, 3, 1, 2, 4, 5]
    sees = np.asarray(masks.ancestors_of(jnp.asarray(table.parent[0])))[np.ix_(theirs, theirs)]
    wanted = "100000 110000 101000 100100 110010 101001"
    assert [row.astype(int).tolist() for row in sees] == [list(map(int, r)) for r in wanted.split()]
    assert table.depth[0][theirs].tolist() == [0, 1, 1, 1, 2, 2]
    assert table.probe[0][theirs].tolist() == [False, True, False, False, True, True]
    assert table.count[0, :3].tolist() == [2, 1, 0] and table.first[0, :2].tolist() == [3, 5]


def test_the_stationary_law_is_the_hand_value():
    moves = [[0, 0, 0, 1], [0.2, 0.1, 0.1, 0.6], [0.15, 0.25, 0.3, 0.3], [0.1, 0.1, 0.5, 0.3]]
    law = sparse.stationary(moves)
    np.testing.assert_allclose(law, [0.11796, 0.13651, 0.32202, 0.42352], atol=1e-5)
    assert 1 + law @ [0, 0.6, 0.95, 1.15] == pytest.approx(1.87487, abs=1e-5)


def test_plans_fit_the_budget_and_are_the_best_of_their_kind():
    rates = sparse.falling(3, 5)
    found = sparse.best(rates, 24)
    assert found.rate == max(sparse.plan(rates, 24, n).rate for n in range(1, 12))
    for state, layout in enumerate(found.layouts):
        assert 1 + len(layout.paths) + sum(layout.num_probes) <= 24
        assert min(layout.num_probes) >= 1
        assert max(map(len, layout.paths), default=0) <= state
    assert found.layouts[0] == probes.Layout((), (3,))
    tree = sparse.candidates(rates, 7)
    values = list(tree.values())
    assert values == sorted(values, reverse=True)
    assert sparse.stops(tree).sum() == pytest.approx(1.0)
    # A wider budget never loses.
    assert sparse.best(rates, 40).rate >= found.rate >= sparse.best(rates, 12).rate


def scored(lm, made, heads, proposal, length, plain=False):
    view = made.cache.read(made.cache.init(lm.config, 1, 32, jnp.float32, stacked=False))
    program = masks.tree_program(
        cached=length, parent=proposal.parent, depth=proposal.depth, valid=proposal.valid
    )
    if plain:
        output = lm.target.forward(lm.params, proposal.tokens, program, view)
    else:
        weights = Weights(target=lm.params, heads=heads.params)
        output = made.drafter.score(weights, proposal, program, view, ())
    return np.asarray(lm.target.logits(lm.params, output.hidden))


def test_tokens_are_scored_as_if_there_were_no_probes():
    lm = toys.model()
    heads, made = smallest.heads("ppd", lm), toys.built(lm, "ppd").method
    table = probes.tables([probes.Layout(((0,), (1,), (0, 0)), (3, 2, 1, 1))])
    ids = jnp.asarray([[[4, 7], [5, 2], [6, 1]]])
    proposal = probes.propose(table, jnp.zeros(1, int), jnp.asarray([[3]]), ids)
    assert proposal.tokens[0].tolist()[:4] == [3, 4, 7, 5]
    zero = jnp.zeros(1, jnp.int32)
    ours = scored(lm, made, heads, proposal, zero)
    bare = dataclasses.replace(proposal, valid=proposal.valid & ~proposal.probe)
    np.testing.assert_allclose(
        ours[:, :4], scored(lm, made, heads, bare, zero, plain=True)[:, :4], atol=1e-6
    )
    # And the probes of a candidate do not see its siblings.
    other = dataclasses.replace(proposal, tokens=proposal.tokens.at[0, 2].set(9))
    moved = np.abs(scored(lm, made, heads, other, zero) - ours)[0].max(-1) > 1e-6
    assert np.flatnonzero(moved).tolist() == [2, table.first[0, 2]]


def test_training_and_decoding_lay_the_same_pass():
    lm = toys.model()
    heads, made = smallest.heads("ppd", lm), toys.built(lm, "ppd").method
    row = [3, 1, 4, 1, 5]
    data = gate.batch([row])
    laid = probed.lay(data, jax.random.key(0), num_probes=3, num_places=None)
    params, x = probes.enter(lm.target, lm.params, heads.params, laid.tokens, laid.probe)
    hidden = laid.split(lm.target.forward(params, x, laid.program, None).hidden)[1]
    trained = lm.target.logits(lm.params, hidden[0, 4])
    table = probes.tables([probes.Layout(((0,), (0, 0), (0, 0, 0), (0, 0, 0, 0)), (0, 0, 0, 0, 3))])
    ids = jnp.asarray(row[1:])[None, :, None]
    proposal = probes.propose(table, jnp.zeros(1, int), jnp.asarray([[3]]), ids)
    decoded = scored(lm, made, heads, proposal, jnp.zeros(1, jnp.int32))
    np.testing.assert_allclose(trained, decoded[0, 5:8], atol=1e-5)
    assert laid.wanted[0, 0].tolist() == [4, 1, 5] and laid.weight[0, 1].tolist() == [1, 1, 0]


def test_probed_places_are_some_that_count_and_probes_keep_to_their_text():
    data = gate.batch([[3, 1, 4, 1, 5, 9, 2, 6]], prompt=4)
    data = dataclasses.replace(data, segments=jnp.asarray([[1, 1, 1, 1, 2, 2, 2, 2]]))
    laid = probed.lay(data, jax.random.key(3), num_probes=2, num_places=3)
    assert sorted(laid.places[0].tolist())[1:] == [4, 5] or set(laid.places[0].tolist()) >= {4, 5}
    sees = np.asarray(masks.unpack_ancestors(laid.program.ancestors))[0]
    for p, place in enumerate(laid.places[0].tolist()):
        first = 8 + 2 * p
        own = [s for s in range(8) if s <= place and (s < 4) == (place < 4)]
        assert np.flatnonzero(sees[first]).tolist() == [*own, first]
        assert np.flatnonzero(sees[first + 1]).tolist() == [*own, first, first + 1]
    assert not sees[:8, 8:].any()


def test_the_loss_is_its_formula_and_moves_only_the_embeddings():
    assert float(probed.combine(jnp.asarray([1.0, 2.0]), 0.8)) == pytest.approx(1.04)
    lm = toys.model()
    made, spec = gate.objective("ppd", shape={"num_probes": 2})
    params = ppd.init(spec.shape, lm.config, jax.random.key(0), lm.params)
    data = gate.batch([[3, 1, 4, 1, 5, 9]])

    def loss(params, target):
        return made.loss(params, target, data, jax.random.key(0), gate.MOMENT)[0]

    own, others = jax.grad(loss, argnums=(0, 1))(params, lm.params)
    assert np.abs(own["embedding"]).max(-1).min() > 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(others))


@pytest.mark.parametrize("asked", [{}, {"temperature": 0.9, "seed": 4}, {"num_draft": 2}])
def test_tokens_are_those_of_plain_decoding(asked):
    lm = toys.model()
    more = {k: v for k, v in asked.items() if k != "num_draft"}
    out = jd.generate(
        lm, PROMPTS, method="ppd", max_new_tokens=24, heads=smallest.heads("ppd", lm), **asked
    )
    assert out.tokens == jd.generate(lm, PROMPTS, max_new_tokens=24, **more).tokens


def test_budgets_that_hold_no_candidate_are_refused():
    lm = toys.model()
    with pytest.raises(InputError, match="num_nodes=3 is out of range"):
        jd.generate(lm, [1], method="ppd", heads=smallest.heads("ppd", lm), num_nodes=3)
