"""Hydra and Hydra++: what a draft depends on, the heads' formula, the past, and the gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import options
from jaxdecode.convert.heads import flattened
from jaxdecode.core.protocols import Weights
from jaxdecode.core.types import Canvas
from jaxdecode.evals import toys as smallest
from jaxdecode.heads import hydra, hydra_pp, medusa
from jaxdecode.training import losses
from jaxdecode.training.objective import Texts, program
from jaxdecode.trees import ranked, static
from tests import toys
from tests.training import gate

KINDS = ("hydra", "hydra_pp")
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [5, 3, 5]]
TEXT = [5, 2, 9, 4, 4, 1, 3, 8, 6, 2, 7, 5]


def silu(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("own", [False, True])
def test_untrained_heads_say_what_the_target_says_of_the_state(own):
    lm, shape = toys.model(), hydra.Shape(num_heads=3, num_layers=2, own_head=own)
    params = hydra.init(shape, lm.config, jax.random.key(0), lm.params)
    inputs = jax.random.normal(jax.random.key(1), (2, 5, 4 * lm.config.hidden_size))
    plain = lm.target.logits(lm.params, inputs[..., : lm.config.hidden_size])
    found = hydra.logits(shape, params, 2, inputs, lambda x: lm.target.logits(lm.params, x))
    np.testing.assert_allclose(found, plain, atol=1e-5)


def test_a_head_is_its_formula():
    lm = toys.model()
    heads = gate.random_heads("hydra", {"num_layers": 2, "own_head": True})
    x = np.random.default_rng(0).normal(size=3 * lm.config.hidden_size).astype(np.float32)
    found = hydra.logits(heads.spec.shape, heads.params, 1, jnp.asarray(x), lambda x: x)
    own = jax.tree.map(np.asarray, heads.params["head.1"])
    first, second, out = own["block.0"], own["block.1"], own["output"]
    skip = x @ first["skip"]["kernel"] + first["skip"]["bias"]
    y = skip + silu(x @ first["kernel"] + first["bias"])
    y = y + silu(y @ second["kernel"] + second["bias"])
    np.testing.assert_allclose(found, out["kernel"] @ y + out["bias"], rtol=1e-4, atol=1e-4)


def test_heads_that_look_at_no_token_are_those_of_medusa():
    lm, width = toys.model(), toys.config().hidden_size
    own = gate.random_heads("medusa", {"num_heads": 2}, lm).params
    params = hydra.init(hydra.Shape(num_heads=2), lm.config, jax.random.key(0), lm.params)
    for k in range(2):
        block = params[f"head.{k}"]["block.0"]
        block["kernel"] = block["kernel"].at[:width].set(own["blocks.0.kernel"][k])
        block["bias"] = own["blocks.0.bias"][k]
    inputs = jax.random.normal(jax.random.key(1), (5, 3 * width))
    theirs = medusa.logits(medusa.Shape(num_heads=2), own, inputs[:, :width], lambda x: x)
    for k in range(2):
        found = hydra.logits(
            hydra.Shape(num_heads=2), params, k, inputs[:, : (k + 2) * width], lambda x: x
        )
        np.testing.assert_allclose(found, theirs[:, k], atol=1e-6)


def test_drafts_follow_their_own_path_only():
    """Scores that name the path they are for: a node's token must come from its parent's."""
    tree = static.from_paths([[0], [1], [0, 0], [1, 0], [0, 1], [1, 1], [0, 0, 0], [1, 0, 2]])
    seen = []

    def score(level, told, tokens):
        path = told * 10 + tokens
        seen.append((level, path.tolist()))
        first = (path * 7 + level) % 61
        return -jnp.abs(jnp.arange(61.0) - first[..., None] - 0.1), path

    canvas = Canvas(
        tokens=jnp.full((1, 4), 2),
        open=jnp.zeros((1, 4), bool),
        **{name: jnp.zeros(1, jnp.int32) for name in ("length", "finish", "stop_state")},
        end=jnp.full(1, 4),
        done=jnp.zeros(1, bool),
        commit_step=jnp.zeros((1, 4)),
        logprob=jnp.zeros((1, 4)),
    )
    proposal = ranked.propose(tree, canvas, jnp.zeros(1, jnp.int32), score)
    # Scores fall with the distance from a token t: ranks are t, t + 1, t - 1.
    assert proposal.parent[0].tolist() == [-1, 0, 0, 1, 2, 1, 2, 3, 4]
    t = [2, 14, 15]
    above = {1: 2 * 10 + t[1], 2: 2 * 10 + t[2]}
    t += [(above[n] * 7 + 1) % 61 for n in (1, 2)]
    t += [t[3] + 1, t[4] + 1]
    below = [(above[1] * 10 + t[3]) * 7 + 2, (above[2] * 10 + t[4]) * 7 + 2]
    assert proposal.tokens[0].tolist() == [*t, below[0] % 61, below[1] % 61 - 1]
    assert [level for level, _ in seen] == [0, 1, 2]


def drafted(lm, heads, prompts):
    """A state in the middle of decoding, and what is drafted there."""
    made = toys.built(lm, heads.spec.kind, heads=heads)
    state = toys.after_steps(made, 3, prompts)
    greedy = toys.request(lm, options.Options(), prompts)
    propose = jax.jit(made.method.drafter.propose)
    return state, propose(made.weights, state.drafter, greedy, state.canvas, None)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_past_and_the_drafts_are_those_of_a_fresh_pass(kind):
    lm = toys.model()
    heads = gate.random_heads(kind, {"num_layers": 2})
    state, proposal = drafted(lm, heads, PROMPTS)
    tokens = np.asarray(state.canvas.tokens)
    data = gate.batch(tokens)
    hidden = lm.target.forward(lm.params, data.tokens, program(data), None).hidden
    if kind == "hydra_pp":
        prefix = hydra_pp.bind(lm.config, jnp.float32)
        rows = prefix.rows(heads.params, hidden, data.positions)
        hidden = prefix.states(heads.params, hidden, program(data))
    for b in range(len(PROMPTS)):
        size = int(state.canvas.length[b])
        if kind == "hydra_pp":
            past = state.drafter
            assert int(past.num_rows[b]) == size
            own, fresh = past.cache.key[0][b], rows[0][0][b]
            np.testing.assert_allclose(own[..., :size], fresh[..., :size], atol=1e-5)
            own, fresh = past.cache.value[0][b], rows[1][0][b]
            np.testing.assert_allclose(own[:, :size], fresh[:, :size], atol=1e-5)
        inputs, node = hidden[b, size - 1], 0
        for level in range(heads.spec.shape.num_heads):
            token = proposal.tokens[b, node]
            inputs = jnp.concatenate([inputs, lm.params["embed"]["embedding"][token]])
            scores = hydra.logits(
                heads.spec.shape,
                heads.params,
                level,
                inputs,
                lambda x: lm.target.logits(lm.params, x),
            )
            children = np.flatnonzero(np.asarray(proposal.parent[b]) == node)
            if not len(children):
                break
            best = np.argsort(-np.asarray(scores))[: len(children)]
            np.testing.assert_array_equal(proposal.tokens[b, children], best)
            node = int(children[-1] if level == 0 else children[0])


def test_the_default_tree_is_as_deep_as_the_heads():
    made = toys.built(toys.model(), "hydra").method.drafter
    assert made.max_depth == 4 and made.widths == (1, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_flows_into_the_target(kind):
    lm = toys.model()
    made, _ = gate.objective(kind, shape={"own_head": True, "num_layers": 2})
    params = gate.random_heads(kind, {"own_head": True, "num_layers": 2}).params
    data = gate.batch([TEXT, TEXT[2:8]])

    def loss(params, target):
        return made.loss(params, target, data, jax.random.key(0), gate.MOMENT)[0]

    own, others = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, lm.params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(own))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(others))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_its_formula(kind):
    lm = toys.model()
    made, spec = gate.objective(kind, shape={"num_heads": 2, "num_layers": 1})
    params = gate.random_heads(kind, {"num_heads": 2, "num_layers": 1}).params
    data = gate.batch([TEXT], prompt=4)
    hidden = lm.target.forward(lm.params, data.tokens, program(data), None).hidden
    theirs = np.asarray(lm.target.logits(lm.params, hidden))[0]
    if kind == "hydra_pp":
        hidden = hydra_pp.bind(lm.config, jnp.float32).states(params, hidden, program(data))
    table, total = np.asarray(lm.params["embed"]["embedding"]), 0.0
    for k in range(2):
        errors = []
        for t in range(max(4 - k - 2, 0), len(TEXT) - k - 2):
            rows = [table[TEXT[t + 1 + j]] for j in range(k + 1)]
            inputs = jnp.concatenate([hidden[0, t], *rows])
            scores = hydra.logits(
                spec.shape, params, k, inputs, lambda x: lm.target.logits(lm.params, x)
            )
            logs = np.asarray(jax.nn.log_softmax(scores))
            law = np.asarray(jax.nn.softmax(theirs[t + 1 + k]))
            errors.append(-logs[TEXT[t + 2 + k]] if kind == "hydra" else -(law * logs).sum())
        total += np.mean(errors) * (0.8 ** (k + 1) if kind == "hydra" else 1.0)
    found = made.loss(params, lm.params, data, jax.random.key(0), gate.MOMENT)[0]
    np.testing.assert_allclose(found, total, rtol=1e-4)


def test_a_head_that_is_the_target_has_the_teachers_entropy():
    scores = jnp.asarray([0.3, -1.2, 2.0, 0.1])
    law = jax.nn.softmax(scores)
    entropy = -(law * jnp.log(law)).sum()
    np.testing.assert_allclose(losses.soft_cross_entropy(scores, law), entropy, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_tokens_are_those_of_plain_decoding(kind):
    lm, asked = toys.model(), {"max_new_tokens": 16, "temperature": 0.9, "seed": 4}
    out = jd.generate(lm, PROMPTS, method=kind, heads=smallest.heads(kind, lm), **asked)
    assert out.tokens == jd.generate(lm, PROMPTS, **asked).tokens


QUICK = {"lm": toys.model(seed=5), "num_new": 25, "shape": {"own_head": True}}


@pytest.mark.parametrize("kind", KINDS)
def test_the_overfit_gate(kind):
    assert gate.passes(kind, depth=4, **QUICK)


def test_the_gate_can_fail():
    assert not gate.passes("hydra", depth=4, steps=3, **QUICK)


def test_parameters_have_names_that_files_keep():
    lm = toys.model()
    start = gate.objective("hydra_pp", shape={"num_heads": 1})[0].init(
        jax.random.key(0), Weights(lm.params), None
    )
    names = flattened(start.params)
    assert "prefix/layer/attn/qkv/kernel" in names and "head.0/block.0/skip/kernel" in names


def test_scaled_embeddings_are_taken_in_by_what_is_exported():
    """Training reads embeddings times 8; what decodes reads them as they are, and says the same."""
    lm = toys.model()
    heads = gate.random_heads("hydra", {"num_heads": 2, "num_layers": 2}, lm)
    shape, width, params = heads.spec.shape, lm.config.hidden_size, heads.params
    made, _ = gate.objective("hydra", shape={"num_heads": 2, "num_layers": 2}, token_scale=8.0)
    found = made.export(params, lm.params).heads
    x = jax.random.normal(jax.random.key(0), (5, 3 * width))
    scaled = x.at[:, width:].multiply(8.0)
    for head in range(2):
        size = (head + 2) * width
        told = hydra.logits(shape, found, head, x[:, :size], lambda x: x)
        wanted = hydra.logits(shape, params, head, scaled[:, :size], lambda x: x)
        np.testing.assert_allclose(told, wanted, rtol=1e-4, atol=1e-5)
    data = gate.batch([TEXT])
    exact = gate.objective("hydra", shape={"num_heads": 2, "num_layers": 2})[0]
    key = jax.random.key(0)
    value, _ = made.loss(params, lm.params, data, key, gate.MOMENT)
    same, _ = exact.loss(found, lm.params, data, key, gate.MOMENT)
    assert float(value) == pytest.approx(float(same), rel=1e-4)


def test_heads_can_begin_with_what_follows_linearly():
    """The second head's first block: least squares from what it reads to the state it guesses."""
    lm, scale = toys.model(), 4.0
    made, _ = gate.objective("hydra", shape={"num_heads": 2}, ridge=0.1, token_scale=scale)
    data = [gate.batch([TEXT, TEXT[::-1]]), gate.batch([TEXT[3:] + TEXT[:3], TEXT[::-1]])]
    texts = Texts(np.zeros(lm.config.vocab_size, int), lambda: iter(data))
    start = made.init(jax.random.key(0), Weights(lm.params), texts).params
    inputs, wanted = [], []
    for batch in data:
        hidden = lm.target.forward(lm.params, batch.tokens, program(batch), None).hidden
        rows = np.asarray(lm.params["embed"]["embedding"])[batch.tokens] * scale
        for b in range(2):
            for t in range(len(TEXT) - 3):
                inputs.append([*hidden[b, t], *rows[b, t + 1], *rows[b, t + 2], 1.0])
                wanted.append(hidden[b, t + 2])
    inputs, wanted = np.asarray(inputs, np.float64), np.asarray(wanted, np.float64)
    penalty = np.diag([0.1] * (inputs.shape[1] - 1) + [1e-6])
    found = np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ wanted)
    skip = start["head.1"]["block.0"]["skip"]
    np.testing.assert_allclose(skip["kernel"], found[:-1], atol=2e-3)
    np.testing.assert_allclose(skip["bias"], found[-1], atol=2e-3)
    assert not np.any(start["head.1"]["block.0"]["kernel"])
