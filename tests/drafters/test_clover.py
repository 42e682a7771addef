"""Clover: the step by hand, the past, what trains, and the gate."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxdecode as jd
from jaxdecode import options
from jaxdecode.evals import toys as smallest
from jaxdecode.heads import clover
from jaxdecode.training.objective import program
from tests import toys
from tests.training import gate

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [5, 3, 5]]
TEXT = [5, 2, 9, 4, 4, 1, 3, 8, 6, 2, 7, 5]


def test_a_step_is_its_formula():
    heads, width = smallest.heads("clover", toys.model()), toys.config().hidden_size
    own = jax.tree.map(np.asarray, heads.params["head.1"])
    state, row = np.random.default_rng(0).normal(size=(2, width)).astype(np.float32)
    found = clover.step(heads.params, 1, jnp.asarray(state), jnp.asarray(row))
    value, out, block = own["value"], own["out"], own["block"]
    answer = (row @ value["kernel"] + value["bias"]) @ out["kernel"] + out["bias"]
    inner = (state + answer) @ block["kernel"] + block["bias"]
    np.testing.assert_allclose(
        found, state + answer + inner / (1 + np.exp(-inner)), rtol=1e-4, atol=1e-4
    )


def test_the_past_and_the_first_drafts_are_those_of_a_fresh_pass():
    lm = toys.model()
    heads = smallest.heads("clover", lm)
    made = toys.built(lm, "clover", heads=heads)
    state = toys.after_steps(made, 3, PROMPTS)
    greedy = toys.request(lm, options.Options(), PROMPTS)
    drafts = made.method.drafter.propose(made.weights, state.drafter, greedy, state.canvas, None)
    data = gate.batch(np.asarray(state.canvas.tokens))
    hidden = lm.target.forward(lm.params, data.tokens, program(data), None).hidden
    front = clover.bind(lm.config, jnp.float32)
    keys, _ = front.rows(heads.params, hidden, data.positions)
    read = front.states(heads.params, hidden, program(data))
    for b in range(len(PROMPTS)):
        size = int(state.canvas.length[b])
        own = state.drafter.cache.key[0][b]
        np.testing.assert_allclose(own[..., :size], keys[0][b][..., :size], atol=1e-5)
        row = lm.params["embed"]["embedding"][data.tokens[b, size]]
        told = clover.step(heads.params, 0, read[b, size - 1], row)
        best = np.argsort(-np.asarray(lm.target.logits(lm.params, told)))
        below = np.flatnonzero(np.asarray(drafts[0].parent[b]) == 0)
        np.testing.assert_array_equal(drafts[0].tokens[b, below], best[: len(below)])


def test_nothing_flows_into_the_target():
    lm = toys.model()
    made, _ = gate.objective("clover")
    params, data = smallest.heads("clover", lm).params, gate.batch([TEXT, TEXT[2:8]])

    def loss(params, target):
        return made.loss(params, target, data, jax.random.key(0), gate.MOMENT)[0]

    own, others = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, lm.params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(own))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(others))


def test_sampled_tokens_are_those_of_plain_decoding():
    lm, asked = toys.model(), {"max_new_tokens": 16, "temperature": 0.9, "seed": 4}
    out = jd.generate(lm, PROMPTS, method="clover", heads=smallest.heads("clover", lm), **asked)
    assert out.tokens == jd.generate(lm, PROMPTS, **asked).tokens


QUICK = {"lm": toys.model(seed=5), "num_new": 25}


def test_the_overfit_gate():
    assert gate.passes("clover", depth=4, **QUICK)


def test_the_gate_can_fail():
    assert not gate.passes("clover", depth=4, steps=3, **QUICK)
