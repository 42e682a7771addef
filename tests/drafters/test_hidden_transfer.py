"""Hidden transfer: what enters where, what sees it, an oracle's loss, the overfit gate."""

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
from jaxdecode.heads import hidden_transfer
from jaxdecode.trees import injected, probes, static
from tests import toys
from tests.training import gate

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
SHAPE = {"num_probes": 3}


def proposal_of():
    tree = static.from_paths([[0], [1], [0, 0]])
    table = probes.tables(probes.full(tree, 3))
    ids = jnp.asarray([[[4, 7], [5, 2], [6, 1]]])
    return probes.propose(table, jnp.full(1, 3), jnp.asarray([[3]]), ids)


def passed(lm, proposal, params, layers=(1, 1, 1)):
    program = masks.tree_program(
        cached=jnp.zeros(1, jnp.int32),
        parent=proposal.parent,
        depth=proposal.depth,
        valid=proposal.valid,
    )
    number = jnp.where(proposal.probe, proposal.depth - 1, 0)
    source = probes.candidate_of(proposal, 3)
    number = jnp.where(proposal.probe, number - jnp.take_along_axis(proposal.depth, source, 1), 0)
    changes = hidden_transfer.changes(params, layers, number, proposal.probe, source)
    out = injected.forward(
        lm.bound, lm.params, proposal.tokens, program, None, changes=changes, taps=("layer.0",)
    )
    plain = lm.target.forward(lm.params, proposal.tokens, program, None, ("layer.0",))
    return out, plain


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_tokens_are_scored_as_if_there_were_no_probes(name):
    lm = toys.model(name)
    heads = smallest.heads("hidden_transfer", lm)
    out, plain = passed(lm, proposal_of(), heads.params)
    np.testing.assert_allclose(out.hidden[:, :4], plain.hidden[:, :4], atol=1e-6)
    np.testing.assert_allclose(out.taps["layer.0"], plain.taps["layer.0"], atol=1e-6)
    assert np.abs(out.hidden[:, 4:] - plain.hidden[:, 4:]).max(-1).min() > 1e-3
    assert jax.tree.map(jnp.shape, out.rows) == jax.tree.map(jnp.shape, plain.rows)


def test_what_a_probe_is_before_its_layer_changes_nothing():
    lm, proposal = toys.model("gemma"), proposal_of()
    heads = smallest.heads("hidden_transfer", lm)
    for layers in [(2, 2, 2), (1, 2, 3), (0, 0, 2)]:
        out, _ = passed(lm, proposal, heads.params, layers)
        other = dataclasses.replace(proposal, tokens=jnp.where(proposal.probe, 17, proposal.tokens))
        moved, _ = passed(lm, other, heads.params, layers)
        np.testing.assert_array_equal(out.hidden, moved.hidden)


def test_probes_do_not_see_siblings_of_their_candidate():
    lm, proposal = toys.model(), proposal_of()
    heads = smallest.heads("hidden_transfer", lm)
    out, _ = passed(lm, proposal, heads.params)
    other = dataclasses.replace(proposal, tokens=proposal.tokens.at[0, 2].set(9))
    moved, _ = passed(lm, other, heads.params)
    changed = np.abs(moved.hidden - out.hidden)[0].max(-1) > 1e-6
    below = np.asarray(probes.candidate_of(proposal, 3))[0] == 2
    assert np.flatnonzero(changed).tolist() == np.flatnonzero(below).tolist()


def test_zero_matrices_at_the_first_layer_are_zero_embeddings():
    lm, proposal = toys.model(), proposal_of()
    out, _ = passed(lm, proposal, {"kernel": jnp.zeros((3, 32, 32))}, (0, 0, 0))
    x = lm.target.embed(lm.params, proposal.tokens) * ~proposal.probe[..., None]
    program = masks.tree_program(
        cached=jnp.zeros(1, jnp.int32),
        parent=proposal.parent,
        depth=proposal.depth,
        valid=proposal.valid,
    )
    want = lm.target.forward(lm.params, x, program, None).hidden
    np.testing.assert_allclose(out.hidden, want, atol=1e-6)


def test_only_the_matrices_move():
    lm = toys.model()
    made, spec = gate.objective("hidden_transfer", shape=SHAPE)
    params = hidden_transfer.init(spec.shape, lm.config, jax.random.key(0), lm.params)
    data = gate.batch([[3, 1, 4, 1, 5, 9]])

    def loss(params, target):
        return made.loss(params, target, data, jax.random.key(0), gate.MOMENT)[0]

    own, others = jax.grad(loss, argnums=(0, 1))(params, lm.params)
    assert np.abs(own["kernel"]).max((1, 2)).min() > 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(others))


@pytest.mark.parametrize("asked", [{}, {"temperature": 0.9, "seed": 4}])
def test_tokens_are_those_of_plain_decoding(asked):
    lm = toys.model()
    heads = smallest.heads("hidden_transfer", lm)
    out = jd.generate(
        lm, PROMPTS, method="hidden_transfer", max_new_tokens=24, heads=heads, **asked
    )
    assert out.tokens == jd.generate(lm, PROMPTS, max_new_tokens=24, **asked).tokens


def test_the_drafter_scores_as_training_does():
    lm = toys.model()
    heads, made = smallest.heads("hidden_transfer", lm), toys.built(lm, "hidden_transfer").method
    proposal = proposal_of()
    program = masks.tree_program(
        cached=jnp.zeros(1, jnp.int32),
        parent=proposal.parent,
        depth=proposal.depth,
        valid=proposal.valid,
    )
    weights = Weights(target=lm.params, heads=heads.params)
    ours = made.drafter.score(weights, proposal, program, None, ())
    np.testing.assert_allclose(ours.hidden, passed(lm, proposal, heads.params)[0].hidden, atol=1e-6)


GATE = dict(
    depth=3, shape=SHAPE, blind=1, num_draft=40, settings={"temperature": 0.01}, num_new=9, prompt=8
)


def test_the_overfit_gate():
    assert gate.passes("hidden_transfer", **GATE)


def test_the_gate_can_fail():
    assert not gate.passes("hidden_transfer", steps=3, **GATE)


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="none smaller than the one before"):
        hidden_transfer.Shape(num_probes=2, layers=(3, 1))
    with pytest.raises(InputError, match="do not fit a target of 2 layers"):
        hidden_transfer.layers_of(hidden_transfer.Shape(layers=(1, 1, 2)), 2)
