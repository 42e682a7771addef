"""Clover-2: regressive attention by hand, the past, what guesses depend on, and the gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import options
from jaxdecode.evals import toys as smallest
from jaxdecode.heads import clover2
from jaxdecode.training.objective import program
from tests import toys
from tests.training import gate

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [5, 3, 5]]
TEXT = [5, 2, 9, 4, 4, 1, 3, 8, 6, 2, 7, 5]


def fresh(lm, shape=None):
    shape = shape or clover2.Shape()
    params = clover2.init(shape, lm.config, jax.random.key(0), lm.params)
    return clover2.bind(shape, lm.config, jnp.float32), params


def test_regressive_attention_by_hand():
    lm = toys.model()
    parts, params = fresh(lm)
    own, width, num = params["take_in"], lm.config.hidden_size, lm.config.num_heads
    rng = np.random.default_rng(0)
    x, embedded = (jnp.asarray(rng.normal(size=(3, width)), jnp.float32) for _ in range(2))
    none = own | {"value": jax.tree.map(jnp.zeros_like, own["value"])}
    np.testing.assert_array_equal(parts.attend(none, x, embedded), x)
    # A key that is the query: every cosine is 1, and the whole value is added.
    eye = {"kernel": jnp.eye(width), "bias": jnp.zeros(width)}
    same = own | {"query": eye, "key": eye, "value": eye}
    normed = parts.norm(own["scale"], x)
    np.testing.assert_allclose(parts.attend(same, x, normed), x + normed, atol=1e-5)
    kernels = {name: np.asarray(own[name]["kernel"]) for name in ("query", "key", "value")}
    y = np.asarray(x) / np.sqrt((np.asarray(x) ** 2).mean(-1, keepdims=True) + 1e-5)
    query, key, value = (
        (z @ kernels[name]).reshape(3, num, -1)
        for name, z in (("query", y), ("key", embedded), ("value", embedded))
    )
    sizes = np.linalg.norm(query, axis=-1) * np.linalg.norm(key, axis=-1)
    cosine = (query * key).sum(-1) / sizes
    wanted = np.asarray(x) + (cosine[..., None] * value).reshape(3, width)
    np.testing.assert_allclose(parts.attend(own, x, embedded), wanted, atol=1e-5)


def test_the_first_head_is_the_targets_at_first():
    lm = toys.model()
    parts, params = fresh(lm)
    x = jax.random.normal(jax.random.key(1), (4, lm.config.hidden_size))
    np.testing.assert_allclose(
        parts.first(params, x), lm.target.norm(lm.params, x), atol=1e-5, rtol=1e-5
    )


def test_the_past_is_that_of_a_fresh_pass():
    lm = toys.model()
    heads = smallest.heads("clover2", lm)
    made = toys.built(lm, "clover2", heads=heads)
    state = toys.after_steps(made, 4, PROMPTS)
    parts = clover2.bind(heads.spec.shape, lm.config, jnp.float32)
    data = gate.batch(np.asarray(state.canvas.tokens))
    tap = f"layer.{lm.config.num_layers - 1}"
    before = lm.target.forward(lm.params, data.tokens, program(data), None, (tap,)).taps[tap]
    following = parts.embed(lm.params, jnp.pad(data.tokens[:, 1:], ((0, 0), (0, 1))))
    x = parts.attend(heads.params["extract"], before, following)
    out, (keys, values) = parts.layers(heads.params, x, program(data))
    own = state.drafter
    for b in range(len(PROMPTS)):
        size = int(state.canvas.length[b])
        assert int(own.num_rows[b]) == size
        np.testing.assert_allclose(own.last[b], out[b, size - 1], atol=1e-4)
        for i in range(2):
            ours, theirs = own.cache.key[i][b], keys[i][b]
            np.testing.assert_allclose(ours[..., :size], theirs[..., :size], atol=1e-5)
            ours, theirs = own.cache.value[i][b], values[i][b]
            np.testing.assert_allclose(ours[:, :size], theirs[:, :size], atol=1e-5)
    greedy = toys.request(lm, options.Options(), PROMPTS)
    drafts = made.method.drafter.propose(made.weights, own, greedy, state.canvas, None)[0]
    assert drafts.tokens.shape[1] == 21
    scores = lm.target.logits(lm.params, parts.first(heads.params, own.last))
    for b in range(len(PROMPTS)):
        below = np.asarray(drafts.tokens[b])[np.asarray(drafts.parent[b]) == 0]
        best = np.argsort(-np.asarray(scores[b]))[: len(below)]
        assert len(below) and set(below.tolist()) == set(best.tolist())


def test_nothing_flows_into_the_target():
    lm = toys.model()
    made, _ = gate.objective("clover2")
    params = smallest.heads("clover2", lm).params
    data = gate.batch([TEXT, TEXT[2:8]])

    def loss(params, target):
        return made.loss(params, target, data, jax.random.key(0), gate.MOMENT)[0]

    own, others = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, lm.params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(own))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(others))


def test_sampled_tokens_are_those_of_plain_decoding():
    lm, asked = toys.model(), {"max_new_tokens": 16, "temperature": 0.9, "seed": 4}
    out = jd.generate(lm, PROMPTS, method="clover2", heads=smallest.heads("clover2", lm), **asked)
    assert out.tokens == jd.generate(lm, PROMPTS, **asked).tokens


QUICK = {
    "lm": toys.model(seed=5),
    "num_new": 25,
    "shape": {"num_heads": 4},
    "settings": {"state_weight": 0.1},
}


def test_the_overfit_gate():
    assert gate.passes("clover2", depth=4, **QUICK)


@pytest.mark.slow
def test_the_gate_can_fail():
    assert not gate.passes("clover2", depth=4, steps=3, **QUICK)
