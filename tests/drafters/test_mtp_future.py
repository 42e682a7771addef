"""Mask tokens: the layout by hand, rows that adapters must not touch, the loss, the gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core import masks
from jaxdecode.core.protocols import Weights
from jaxdecode.evals import toys as smallest
from jaxdecode.heads import mtp_future
from jaxdecode.training.objectives import mtp_future as objective
from jaxdecode.trees import probes, static
from tests import toys
from tests.training import gate

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
SEES = "100000000 110000000 111000000 100100000 100110000 100111000 100100100 100100110 100100111"


def test_two_masks_behind_every_token_have_the_masks_of_the_paper():
    table = probes.tables(probes.full(static.chain(2), 2))
    # There the masks stand right behind their token.
    theirs = [0, 3, 4, 1, 5, 6, 2, 7, 8]
    sees = np.asarray(masks.ancestors_of(jnp.asarray(table.parent[2])))[np.ix_(theirs, theirs)]
    assert [row.astype(int).tolist() for row in sees] == [list(map(int, r)) for r in SEES.split()]
    assert table.depth[2][theirs].tolist() == [0, 1, 2, 1, 2, 3, 2, 3, 4]
    assert probes.tables(probes.full(static.chain(8), 8)).widths == (9, 81)


def test_the_tokens_keep_every_bit_of_what_the_target_says():
    lm = toys.model()
    heads, made = smallest.heads("mtp_future", lm), toys.built(lm, "mtp_future").method
    table = probes.tables(probes.full(static.chain(4), 4))
    ids = jnp.asarray([4, 7, 5, 2])[None, :, None]
    proposal = probes.propose(table, jnp.full(1, 4), jnp.asarray([[3]]), ids)
    program = masks.tree_program(
        cached=jnp.zeros(1, jnp.int32),
        parent=proposal.parent,
        depth=proposal.depth,
        valid=proposal.valid,
    )
    plain = lm.target.forward(lm.params, proposal.tokens, program, None).hidden
    weights = Weights(target=lm.params, heads=heads.params)
    ours = made.drafter.score(weights, proposal, program, None, ()).hidden
    np.testing.assert_array_equal(ours[:, :5], plain[:, :5])
    assert np.abs(ours[:, 5:] - plain[:, 5:]).min(-1).max() > 0


def test_the_sampler_is_its_formula():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(8, 4)), rng.normal(size=(4, 4))
    before, state = rng.normal(size=4), rng.normal(size=4)
    params = {"in.kernel": first, "out.kernel": second, "norm": {"scale": np.ones(4)}}
    params = jax.tree.map(jnp.float32, params)
    found = mtp_future.sampled({"sampler": params}, jnp.float32(before), jnp.float32(state))
    x = np.concatenate([before, state]) @ first
    x = x / (1 + np.exp(-x))
    x = x / np.sqrt((x**2).mean() + 1e-5)
    np.testing.assert_allclose(found, state + x @ second, rtol=1e-4)


def test_nothing_flows_into_the_target_or_the_states_that_masks_are_held_to():
    assert float(objective.distance(jnp.asarray([1.0, 2.0]), jnp.asarray([0.0, 4.0]))) == 2.5
    lm = toys.model()
    made, _ = gate.objective("mtp_future", shape={"num_probes": 2, "rank": 2})
    params = smallest.heads("mtp_future", lm).params
    params = params | {"embedding": params["embedding"][:2]}
    data = gate.batch([[3, 1, 4, 1, 5, 9]])

    def loss(params, target):
        return made.loss(params, target, data, jax.random.key(0), gate.MOMENT)[0]

    own, others = jax.grad(loss, argnums=(0, 1))(params, lm.params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(own))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(others))


@pytest.mark.parametrize("asked", [{}, {"temperature": 0.9, "seed": 4}])
def test_tokens_are_those_of_plain_decoding(asked):
    lm = toys.model()
    heads = smallest.heads("mtp_future", lm)
    out = jd.generate(lm, PROMPTS, method="mtp_future", max_new_tokens=24, heads=heads, **asked)
    assert out.tokens == jd.generate(lm, PROMPTS, max_new_tokens=24, **asked).tokens


def test_the_overfit_gate():
    assert gate.passes("mtp_future", depth=3, shape={"num_probes": 3}, blind=1)


def test_the_gate_can_fail():
    assert not gate.passes("mtp_future", depth=3, shape={"num_probes": 3}, steps=3, blind=1)
