"""Drafters that draw: what they record is the law that they draw from."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode import engine as engines
from jaxdecode import options
from jaxdecode.drafters import draft_beam, draft_chains, draft_tree
from jaxdecode.errors import InputError
from jaxdecode.sampling import warp
from jaxdecode.trees import levels
from tests import toys
from tests.drafters.test_draft_model import PROMPTS

Q = np.asarray([0.4, 0.25, 0.2, 0.1, 0.05, 0.0])
DRAWS = 100_000
METHODS = {
    "speculative_sampling": {"num_draft": 3},
    "spectr": {"num_draft": 3, "num_chains": 3},
    "rsd_c": {"branching": (3, 2, 1)},
    "optimal_mdsd": {"branching": (3, 2)},
    "rsd_s": {"width": 3, "num_draft": 3},
}


@pytest.mark.parametrize("name", METHODS)
def test_recorded_laws_are_the_draft_models_own_at_every_node(name):
    lm, draft = toys.model(), toys.model(seed=5)
    engine = toys.drafted(lm, name, draft, **METHODS[name])
    drafter, weights = engine.method.drafter, engine.weights
    chosen = options.Options(temperature=0.9, repetition_penalty=1.4, top_k=9)
    request = toys.request(lm, chosen, PROMPTS)
    state = engines.prefilled(engine, request, PROMPTS, 40)
    # As after a step whose whole path was accepted: the cache lacks those tokens.
    behind = state.canvas.length - (1 if name == "speculative_sampling" else drafter.max_depth)
    before = dataclasses.replace(state.canvas, length=jnp.maximum(behind, 0))
    stale = drafter.init(weights, request, before, None, None)
    proposal, _ = jax.jit(drafter.propose)(weights, stale, request, state.canvas, None)
    sampling = jax.tree.map(lambda x: x[0], request.sampling)
    parents = np.asarray(proposal.parent)
    for b in range(len(PROMPTS)):
        past = np.asarray(state.canvas.tokens[b, : int(state.canvas.length[b])]).tolist()
        for node in sorted(set(parents[b, 1:].tolist())):
            path, at = [], node
            while at >= 0:
                path, at = [int(proposal.tokens[b, at]), *path], parents[b, at]
            tokens = past + path
            seen = jnp.zeros(lm.config.vocab_size, bool).at[jnp.asarray(tokens)].set(True)
            scores = jnp.asarray(toys.full_logits(draft, tokens)[0][-1])
            law = jax.nn.softmax(warp.warp(scores, sampling, seen))
            np.testing.assert_allclose(proposal.draft_probs[b, node], law, atol=1e-4)
            children = np.flatnonzero((parents[b] == node) & np.asarray(proposal.valid[b]))
            drawn = np.asarray(proposal.tokens[b])[children]
            assert (np.asarray(law)[drawn] > 0).all()
            if name != "spectr":
                assert len(set(drawn.tolist())) == len(drawn)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _many(expand, law, num_rows):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    size = law.shape[0]
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (num_rows, size)))(keys)
    return jax.vmap(lambda gumbel: expand(law[None], gumbel, (jnp.zeros(1), jnp.zeros(1)), 0))(
        noise
    )


def pairs(plan, num_rows=1):
    """Frequencies of the first two children of a root with law Q, and whether both exist."""
    out = _many(plan.expand, jnp.asarray(Q, jnp.float32), num_rows)
    tokens, valid = np.asarray(out.tokens), np.asarray(out.valid)
    table = np.zeros((len(Q), len(Q)))
    np.add.at(table, (tokens[:, 0], tokens[:, 1]), 1 / DRAWS)
    return table, valid[:, :2].all()


def without_replacement():
    return np.asarray([[a * b / (1 - a) for b in Q] for a in Q]) * (1 - np.eye(len(Q)))


def test_chains_are_independent():
    table, exist = pairs(draft_chains.several(2, 1), num_rows=2)
    assert exist and np.abs(table - np.outer(Q, Q)).max() < 0.006


def test_a_race_draws_in_order_without_replacement():
    config = draft_tree.Config(branching=(2,))
    table, exist = pairs(draft_tree.plan(config))
    assert exist and np.abs(table - without_replacement()).max() < 0.006
    assert np.abs(table - np.outer(Q, Q)).max() > 0.05, "drawing with replacement is told apart"


def test_greedy_children_are_the_likeliest_and_one_draw_of_the_rest():
    config = draft_tree.Config(branching=(2,), children="greedy")
    table, exist = pairs(draft_tree.plan(config))
    rest = np.where(np.arange(len(Q)) == 0, 0, Q) / (1 - Q[0])
    assert exist and np.abs(table - np.eye(len(Q))[0][:, None] * rest).max() < 0.006


def test_first_beams_are_draws_without_replacement():
    table, exist = pairs(draft_beam.plan(draft_beam.Config(width=2, num_draft=1)))
    assert exist and np.abs(table - without_replacement()).max() < 0.006


def test_surplus_children_do_not_exist():
    law = jnp.asarray([0.0, 0.7, 0.3, 0.0])
    for children in ("race", "greedy"):
        plan = draft_tree.plan(draft_tree.Config(branching=(3,), children=children))
        out = plan.expand(law[None], jnp.zeros((1, 4)), (), 0)
        assert out.valid.tolist() == [True, True, False]
        assert out.tokens[:2].tolist() == [1, 2]


def test_beams_are_those_of_a_plain_reference():
    rng = np.random.default_rng(1)
    width, size = 3, 6
    law, gumbel = rng.dirichlet(np.ones(size), width), rng.gumbel(size=(width, size))
    log_prob, number = np.log(rng.dirichlet(np.ones(width))), -np.sort(rng.gumbel(size=width))
    ours = draft_beam.plan(draft_beam.Config(width=width)).expand(
        *(jnp.asarray(x, jnp.float32) for x in (law, gumbel)),
        (jnp.asarray(log_prob, jnp.float32), jnp.asarray(number, jnp.float32)),
        1,
    )
    # Every child of every beam, in float64 and by the formula of the truncated Gumbel.
    g = log_prob[:, None] + np.log(law) + gumbel
    top = g.max(1, keepdims=True)
    conditioned = -np.log(np.exp(-number[:, None]) - np.exp(-top) + np.exp(-g))
    order = np.argsort(-conditioned.ravel())[:width]
    assert ours.parent.tolist() == (order // size).tolist()
    assert ours.tokens.tolist() == (order % size).tolist()
    np.testing.assert_allclose(ours.carry[1], conditioned.ravel()[order], rtol=1e-4)
    np.testing.assert_allclose(
        ours.carry[0], (log_prob[:, None] + np.log(law)).ravel()[order], rtol=1e-4
    )


def test_levels_of_full_trees():
    assert levels.full((2, 2, 2)) == (2, 4, 8) and levels.full((3, 1)) == (3, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: draft_tree.Config(branching=()), "branching"),
        (lambda: draft_tree.Config(branching=(2, 0)), "branching=0"),
        (lambda: draft_tree.Config(children="best"), "'race' or 'greedy'"),
        (lambda: draft_beam.Config(width=0), "width=0"),
        (lambda: draft_chains.Config(num_chains=0), "num_chains=0"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
