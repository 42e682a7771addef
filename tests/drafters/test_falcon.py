"""Drafting in blocks of k: masks and passes by hand, its memory, its past, glances, the gate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core import masks
from jaxdecode.evals import toys as smallest
from jaxdecode.heads import falcon
from jaxdecode.models import extra
from jaxdecode.training.objective import program
from jaxdecode.training.objectives import falcon as objective
from jaxdecode.trees import passes, static
from tests import toys
from tests.training import gate

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
SMALL_PROMPTS = [[3, 1, 4, 1, 5], [2], [2, 0, 5, 3, 5, 1, 4, 1, 3]]
TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def sees(num, phase, block):
    laid = objective.blocks_of(gate.batch([[1] * num]), jnp.int32(phase), block)
    over_new = masks.dense(laid, num_slots=0, window=0)[1][0]
    return ["".join(map(str, row)) for row in np.asarray(over_new).astype(int)]


def test_blocks_of_two_have_the_mask_of_the_paper():
    assert sees(5, 0, 2) == ["11000", "11000", "11110", "11110", "11111"]
    assert sees(5, 1, 2) == ["10000", "11100", "11100", "11111", "11111"]


def test_the_passes_of_a_tree_by_hand():
    paths = [[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 1], [1, 0, 1, 0]]
    first, second = passes.plan(static.from_paths(paths), 2)
    assert first.nodes.tolist() == [1, 2, 3, 4, 5] and first.offset.tolist() == [0, 0, 1, 1, 1]
    assert second.starts.tolist() == [3, 5] and second.way.tolist() == [[1, 3], [2, 5]]
    assert second.parent.tolist() == [0, 0] and second.start.tolist() == [0, 1, 1, 1]
    assert second.nodes.tolist() == [6, 7, 8, 9] and second.offset.tolist() == [0, 0, 0, 1]
    assert second.sees.tolist() == [[True, False], [False, True]]
    chain = passes.plan(static.chain(3), 1)
    assert chain[2].sees.tolist() == [[True, False], [True, True]]


def test_the_memory_is_its_formula():
    rng = np.random.default_rng(0)
    kernel, bias, x = rng.normal(size=(8, 16)), rng.normal(size=16), rng.normal(size=(3, 4))
    own = falcon.Drafting(extra.Pairs(toys.config(hidden_size=4), jnp.float32), 1)
    params = {"memory": {"0": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}}
    found, after = own.recur(params, jnp.float32(x)[None], own.memory(1))

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    out, cell = np.zeros(4), np.zeros(4)
    for i in range(3):
        enter, forget, made, gate_ = np.split(np.concatenate([x[i], out]) @ kernel + bias, 4)
        cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(made)
        out = sigmoid(gate_) * np.tanh(cell)
        np.testing.assert_allclose(found[0, i], x[i] + out, rtol=1e-4)
    np.testing.assert_allclose(after[0, 0], [out, cell], rtol=1e-4)
    kept = own.recur(
        params, jnp.float32(x)[None], own.memory(1), keep=jnp.asarray([[True, True, False]])
    )
    part = own.recur(params, jnp.float32(x)[None, :2], own.memory(1))
    np.testing.assert_allclose(kept[1], part[1], rtol=1e-5)


def test_blocks_of_one_without_memory_are_a_causal_layer_on_pairs():
    lm = toys.model()
    heads = gate.random_heads("falcon", {"block": 1})
    own = falcon.bind(heads.spec.shape, lm.config, jnp.float32)
    params = heads.params | {"memory": jax.tree.map(jnp.zeros_like, heads.params["memory"])}
    data = gate.batch([TEXT])
    x = jax.random.normal(jax.random.key(0), (1, 10, 32))
    same, _ = own.recur(params, x, own.memory(1))
    np.testing.assert_array_equal(same, x)
    laid = objective.blocks_of(data, jnp.int32(0), 1)
    ours = jax.jit(lambda x: own.states(params, x, laid))(x)
    block = functools.partial(extra.block, own.pairs.config, jnp.float32, params["layer"])
    plain = jax.jit(lambda x: block(x, program(data), None))(x)
    np.testing.assert_allclose(ours, plain, atol=1e-6)


def test_glances_are_as_many_as_there_are_mistakes_to_reveal():
    assert int(objective.num_revealed(10, 4, 0.45)) == 2
    weight = jnp.ones((1, 12)).at[0, 10:].set(0)
    right = jnp.zeros((1, 12), bool).at[0, :4].set(True)
    place = jnp.arange(12)[None]

    def shown(block, phase, share):
        return np.asarray(
            objective.glances(
                jax.random.key(1), weight, right, place, jnp.int32(phase), block=block, share=share
            )
        )[0]

    some = shown(2, 0, (0.45, 0.45))
    assert some.sum() == 2 and not some[1::2].any()
    every = shown(2, 1, (1.0, 1.0))
    assert every.tolist() == [False] + [True, False] * 4 + [True] + [False] * 2, "clamped"
    for phase in range(3):
        part = shown(3, phase, (1.0, 1.0))
        role = (np.arange(12) + phase) % 3
        assert part.any() and not part[role == 2].any() and not part[10:].any()
        assert (part[1:] <= part[:-1])[role[1:] == 1].all(), "runs begin with their block"
    assert not shown(1, 0, (1.0, 1.0)).any()


def fresh_pass(lm, own, params, block, data):
    """A pass over whole texts, laid out as in training, with the target's states."""
    features = jax.jit(lambda: lm.target.forward(lm.params, data.tokens, program(data), None))()
    following = jnp.pad(data.tokens[:, 1:], ((0, 0), (0, 1)))
    rows = own.pairs.enter(params, lm.target.embed(lm.params, following), features.hidden)

    @jax.jit
    def run(rows, sizes):
        keep = jnp.arange(rows.shape[1]) < sizes[:, None]
        x, memory = own.recur(params, rows, own.memory(len(rows)), keep=keep)
        laid = objective.blocks_of(data, (-sizes % block)[:, None], block)
        return own.states(params, x, laid), x, memory, own.pairs.rows(params, x, data.positions)

    return rows, run


@pytest.mark.parametrize("block", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_past_and_the_drafts_are_those_of_a_fresh_pass(block):
    lm = smallest.model()
    heads = gate.random_heads("falcon", {"block": block}, lm)
    params, own = heads.params, falcon.bind(heads.spec.shape, lm.config, jnp.float32)
    made = toys.built(lm, "falcon", heads=heads)
    state = toys.after_steps(made, 6, SMALL_PROMPTS)
    assert state.stats.num_accepted[:3].sum() > 0
    propose = jax.jit(made.method.drafter.propose)
    drafts = propose(made.weights, state.drafter, None, state.canvas, None)[0].tokens
    tree = static.load("eagle_25").up_to(2 * block)
    main = [1 + tree.paths.index((0,) * depth) for depth in range(1, tree.max_depth + 1)]
    sizes, past = state.canvas.length, state.drafter.past
    np.testing.assert_array_equal(past.num_rows, sizes)
    rows, run = fresh_pass(lm, own, params, block, gate.batch(np.asarray(state.canvas.tokens)))
    states, x, memory, (keys, values) = run(rows, sizes)
    more, seconds = rows, []
    for b in range(3):
        size = int(sizes[b])
        cache = past.cache
        close = functools.partial(np.testing.assert_allclose, atol=1e-5)
        close(cache.key[0][b, :, :, :size], keys[0][b, :, :, :size])
        close(cache.value[0][b, :, :size], values[0][b, :, :size])
        close(past.last[b], x[b, size - block : size])
        close(state.drafter.memory[b], memory[b])
        guessed = states[b, size - block : size]
        first = lm.target.logits(lm.params, guessed).argmax(-1)
        np.testing.assert_array_equal(drafts[b, np.asarray(main[:block])], first)
        new = own.pairs.enter(params, lm.target.embed(lm.params, first), guessed)
        more = more.at[b, size : size + block].set(new)
        seconds.append(slice(size, size + block))
    states = run(more, sizes + block)[0]
    for b, place in enumerate(seconds):
        second = lm.target.logits(lm.params, states[b, place]).argmax(-1)
        found = drafts[b, np.asarray(main[block:])]
        np.testing.assert_array_equal(found, second[: len(found)])


def test_nothing_flows_into_the_target():
    made, _ = gate.objective("falcon")
    params = gate.random_heads("falcon", {}).params
    data = gate.batch([TEXT, TEXT[:6]])

    def loss(params, target):
        return made.loss(params, target, data, jax.random.key(0), gate.MOMENT)[0]

    own, others = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, toys.model().params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(own))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(others))


def test_sampled_tokens_are_those_of_plain_decoding():
    asked = {"max_new_tokens": 24, "temperature": 0.9, "seed": 4}
    lm, heads = toys.model(), smallest.heads("falcon", toys.model())
    out = jd.generate(lm, PROMPTS, method="falcon", heads=heads, **asked)
    assert out.tokens == jd.generate(lm, PROMPTS, **asked).tokens


QUICK = {
    "lm": toys.model(seed=5),
    "num_new": 25,
    "shape": {"num_recurrent": 1},
    "settings": {"noise": 0.02},
}


def test_the_overfit_gate():
    assert gate.passes("falcon", depth=4, **QUICK)


@pytest.mark.slow
def test_the_gate_can_fail():
    assert not gate.passes("falcon", depth=4, steps=3, **QUICK)
