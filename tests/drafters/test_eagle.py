"""EAGLE 1 to 3: the past, training as it will be read, what is masked, and the gates."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import options
from jaxdecode.core import ops
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import HeadSpec, Weights
from jaxdecode.drafters import eagle as drafter
from jaxdecode.evals import toys as smallest
from jaxdecode.heads import eagle, eagle3
from jaxdecode.models import extra
from jaxdecode.training import losses
from jaxdecode.training.objective import Texts, ahead, program
from jaxdecode.training.objectives import eagle3 as objective
from tests import toys
from tests.training import gate

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [5, 3, 5]]
TEXT = [5, 2, 9, 4, 4, 1, 3, 8, 6, 2, 7, 5]
LINES = ["eagle1", "eagle2", "eagle3"]
CLOSE = {"rtol": 1e-5, "atol": 2e-5}
KIND = {"eagle1": "eagle", "eagle2": "eagle", "eagle3": "eagle3"}


def calm(heads):
    """The heads with smaller kernels, whose states are of size 1: fit for an absolute bound."""

    def scaled(leaf):
        is_kernel = leaf.ndim > 1 and jnp.issubdtype(leaf.dtype, jnp.floating)
        return 0.3 * leaf if is_kernel else leaf

    return dataclasses.replace(heads, params=jax.tree.map(scaled, heads.params))


def bound(kind, lm, shape=None):
    module = drafter.KINDS[kind]
    return module.bind(shape or module.Shape(), lm.config, jnp.float32, lm.target)


def everywhere(data):
    """All places of all texts."""
    num_rows, size = data.tokens.shape
    return jnp.broadcast_to(jnp.arange(size), (num_rows, size))


@functools.partial(jax.jit, static_argnames=("parts", "depth"))
def passes_of(params, target, data, *, parts, depth):
    """What passes say of a text, each of which reads what the one before it said."""
    output = parts.target.forward(target, data.tokens, program(data), None, parts.taps)
    said = parts.features(params, output)
    if isinstance(parts, eagle3.Parts):
        return objective.unrolled(parts, params, target, data, said, everywhere(data), depth)
    # EAGLE is trained on one pass only.
    layer, sees, above, made = parts.layer, objective.sees_of(data.segments), [], []
    for j in range(depth):
        read, x = parts.enter(params, target, ahead(data, j + 1)[0], said)
        form = layer.config, layer.kv_dtype, params["attn"]
        mixed, own = extra.attend_down(*form, read, data.positions + j, sees, above)
        said = layer.after(params, x + mixed)
        above.append(own)
        made.append(said)
    return made


@pytest.mark.parametrize("line", LINES)
def test_the_past_is_that_of_a_fresh_pass(line):
    lm = toys.model()
    heads = calm(smallest.heads(KIND[line], lm))
    made = toys.built(lm, line, heads=heads)
    state = toys.after_steps(made, 4, PROMPTS)
    parts, own = bound(KIND[line], lm), state.drafter
    data = gate.batch(np.asarray(state.canvas.tokens))
    output = lm.target.forward(lm.params, data.tokens, program(data), None, parts.taps)
    following = jnp.pad(data.tokens[:, 1:], ((0, 0), (0, 1)))
    seen = parts.features(heads.params, output)
    out, (keys, values) = eagle.run(parts, heads.params, lm.params, following, seen, program(data))
    for b in range(len(PROMPTS)):
        size = int(state.canvas.length[b])
        assert int(own.num_rows[b]) == size
        assert np.abs(out[b, size - 1]).max() < 5
        np.testing.assert_allclose(own.last[b], out[b, size - 1], **CLOSE)
        np.testing.assert_allclose(
            own.cache.key[0][b, ..., :size], keys[0][b, ..., :size], atol=2e-5
        )
        np.testing.assert_allclose(
            own.cache.value[0][b, :, :size], values[0][b, :, :size], atol=2e-5
        )


@pytest.mark.parametrize("line", LINES)
def test_drafts_of_a_path_are_those_of_training(line):
    """What decoding guesses down a path, token by token, is what the passes of training say."""
    lm = toys.model()
    heads = smallest.heads(KIND[line], lm)
    made = toys.built(lm, line, heads=heads)
    state = toys.after_steps(made, 3, PROMPTS)
    greedy = toys.request(lm, options.Options(), PROMPTS)
    proposal, _ = made.method.drafter.propose(
        made.weights, state.drafter, greedy, state.canvas, None
    )
    parts, checked = bound(KIND[line], lm), 0
    for b in range(len(PROMPTS)):
        size = int(state.canvas.length[b]) + 1
        text = np.asarray(state.canvas.tokens[b, :size]).tolist()
        parent, tokens = np.asarray(proposal.parent[b]), np.asarray(proposal.tokens[b])
        node = int(np.argmax(np.where(proposal.valid[b], proposal.depth[b], -1)))
        path = []
        while node > 0:
            path.append(int(node))
            node = int(parent[node])
        path = path[::-1]
        # Of one width and as deep as any path, so that it compiles once.
        data = gate.batch([text + tokens[path].tolist()], width=48)
        outs = passes_of(heads.params, lm.params, data, parts=parts, depth=8)
        for j, node in enumerate(path):
            scores = parts.scores(heads.params, lm.params, outs[j][0, size - 2])
            siblings = np.flatnonzero(parent == parent[node])
            best = np.argsort(-np.asarray(scores))[: len(siblings)]
            assert tokens[node] in parts.tokens(heads.params, jnp.asarray(best))
            checked += 1
    assert checked >= 6


def test_packed_texts_do_not_see_each_other():
    sees = np.asarray(objective.sees_of(jnp.asarray([[1, 1, 2]])))[0]
    np.testing.assert_array_equal(sees, np.asarray([[1, 0, 0], [1, 1, 0], [0, 0, 1]], bool))


def test_the_passes_equal_one_row_after_the_other():
    """Training-time test: a layout of all passes at once is decoding step by step."""
    lm = toys.model()
    heads = smallest.heads("eagle3", lm)
    parts, data = bound("eagle3", lm), gate.batch([TEXT])
    output = lm.target.forward(lm.params, data.tokens, program(data), None, parts.taps)
    outs = passes_of(heads.params, lm.params, data, parts=parts, depth=4)
    place = 5
    tokens = jnp.asarray([TEXT[1 : place + 2]])
    rows = parts.features(heads.params, output)[:, : place + 1]
    for j in range(4):
        num = tokens.shape[1]
        mask = MaskProgram(
            cached=jnp.zeros(1, jnp.int32),
            positions=jnp.arange(num)[None],
            num_new=jnp.full(1, num),
        )
        out, _ = eagle.run(parts, heads.params, lm.params, tokens, rows, mask)
        np.testing.assert_allclose(out[0, -1], outs[j][0, place], **CLOSE)
        tokens = jnp.concatenate([tokens, jnp.asarray([[TEXT[place + 2 + j]]])], axis=1)
        rows = jnp.concatenate([rows, out[:, -1:]], axis=1)


def test_only_tokens_of_the_draft_vocabulary_are_drafted_and_count():
    lm = toys.model()
    spec = HeadSpec("eagle3", eagle3.Shape(draft_vocab=20))
    heads = smallest.random_heads(spec, lm)
    tokens = np.asarray(heads.params["tokens"])
    assert tokens.tolist() == list(range(20)) and heads.params["head"]["kernel"].shape[0] == 20
    moved = dict(heads.params, tokens=jnp.arange(40, 60, dtype=jnp.int32))
    heads = jd.Heads(spec=spec, params=moved, target=heads.target)
    made = toys.built(lm, "eagle3", heads=heads)
    state = toys.after_steps(made, 2, PROMPTS)
    greedy = toys.request(lm, options.Options(), PROMPTS)
    proposal, _ = made.method.drafter.propose(
        made.weights, state.drafter, greedy, state.canvas, None
    )
    drafted = np.asarray(proposal.tokens[:, 1:])
    assert ((drafted >= 40) & (drafted < 60)).all()
    out = jd.generate(lm, PROMPTS, method="eagle3", heads=heads, max_new_tokens=12)
    assert out.tokens == jd.generate(lm, PROMPTS, max_new_tokens=12).tokens
    # A vocabulary without any first choice of the target: nothing to learn, no loss.
    data = gate.batch([TEXT])
    best = set(np.asarray(toys.full_logits(lm, TEXT)[0].argmax(-1)).ravel().tolist())
    rest = [token for token in range(lm.config.vocab_size) if token not in best][:20]
    made_loss, _ = gate.objective("eagle3", shape={"draft_vocab": 20})
    params = dict(heads.params, tokens=jnp.asarray(rest, jnp.int32))
    assert float(made_loss.loss(params, lm.params, data, jax.random.key(0), gate.MOMENT)[0]) == 0.0


def test_the_draft_vocabulary_is_what_the_texts_say_most_often():
    lm = toys.model()
    made, _ = gate.objective("eagle3", shape={"draft_vocab": 4})
    counts = np.zeros(lm.config.vocab_size, int)
    counts[[40, 7, 30, 9]] = 5, 9, 1, 1
    texts = Texts(counts, lambda: iter(()))
    start = made.init(jax.random.key(0), Weights(lm.params), texts)
    assert start.params["tokens"].tolist() == [7, 9, 30, 40]
    table = np.asarray(lm.params["head"]["kernel"])
    np.testing.assert_array_equal(start.params["head"]["kernel"], table[[7, 9, 30, 40]])
    found = made.export(start.params, lm.params).heads
    assert found["tokens"].tolist() == [7, 9, 30, 40]
    # With nothing counted it is the first tokens.
    plain = made.init(jax.random.key(0), Weights(lm.params), None).params
    assert plain["tokens"].tolist() == [0, 1, 2, 3]


def test_the_loss_of_eagle3_is_its_formula():
    """The target's law over the draft vocabulary; what cannot be drafted adds 0 to the mean."""
    lm, num, decay = toys.model(), 3, 0.7
    spec = HeadSpec("eagle3", eagle3.Shape(draft_vocab=20))
    full, _ = toys.full_logits(lm, TEXT)
    best = full.argmax(-1)
    # One of the target's first choices cannot be drafted.
    others = [token for token in range(lm.config.vocab_size) if token not in best]
    known = sorted(set(best.tolist()) - {int(best[5])})
    tokens = np.asarray((known + others)[:20])
    params = smallest.random_heads(spec, lm).params | {"tokens": jnp.asarray(tokens, jnp.int32)}
    made, _ = gate.objective("eagle3", shape={"draft_vocab": 20}, num_passes=num, decay=decay)
    data = gate.batch([TEXT], prompt=4)
    found, _ = made.loss(params, lm.params, data, jax.random.key(0), gate.MOMENT)

    parts = bound("eagle3", lm, spec.shape)
    output = lm.target.forward(lm.params, data.tokens, program(data), None, parts.taps)
    start = parts.features(params, output)
    outs = objective.unrolled(parts, params, lm.params, data, start, everywhere(data), num)
    wanted, dropped = 0.0, 0
    for j in range(num):
        ours = np.asarray(parts.scores(params, lm.params, outs[j][0]), np.float64)
        errors = []
        # Tokens of the answer begin at place 4; that at t + j + 2 is guessed at place t.
        for t in range(len(TEXT) - j - 2):
            if t + j + 2 < 4:
                continue
            place = t + j + 1
            if best[place] not in tokens:
                errors.append(0.0)
                dropped += 1
                continue
            law = np.exp(full[place, tokens].astype(np.float64))
            law /= law.sum()
            errors.append(np.log(np.exp(ours[t]).sum()) - (law * ours[t]).sum())
        wanted += decay**j * np.mean(errors)
    assert dropped > 0
    np.testing.assert_allclose(float(found), wanted, rtol=1e-4)


def test_what_eagle3_computes_at_places_is_what_it_computes_there_of_all():
    """And so are its gradients: of other places a pass sees keys and values alone."""
    lm, num = toys.model(), 3
    params = smallest.heads("eagle3", lm).params
    parts = bound("eagle3", lm)
    data = gate.batch([TEXT, [9, *TEXT[:-1]]])
    output = lm.target.forward(lm.params, data.tokens, program(data), None, parts.taps)
    places = jnp.asarray([[6, 0, 3], [2, 5, 7]])
    weight = jax.random.normal(jax.random.key(0), (num, *places.shape, lm.config.hidden_size))

    def asked(params, at, then):
        start = parts.features(params, output)
        outs = objective.unrolled(parts, params, lm.params, data, start, at, num)
        outs = jnp.stack([then(x) for x in outs])
        return (outs * weight).sum(), outs

    def at_once(params):
        return asked(params, everywhere(data), lambda x: ops.taken(x, places))

    def alone(params):
        return asked(params, places, lambda x: x)

    (wanted, found) = (
        jax.jit(jax.value_and_grad(each, has_aux=True, allow_int=True))(params)
        for each in (at_once, alone)
    )
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_allclose(a, b, atol=2e-5 * (1 + np.abs(a).max()))


def test_the_distance_of_the_note():
    error = losses.smooth_l1(jnp.asarray([0.5, 2.0]), jnp.zeros(2))
    np.testing.assert_allclose(error, 0.8125)


@pytest.mark.parametrize("recipe", ["eagle1", "eagle3"])
def test_nothing_flows_into_the_target(recipe):
    data = gate.batch([TEXT, TEXT[2:8]])
    assert gate.learns_alone(recipe, data)


@pytest.mark.parametrize("line", LINES)
def test_sampled_tokens_are_those_of_plain_decoding(line):
    lm, asked = toys.model(), {"max_new_tokens": 16, "temperature": 0.9, "seed": 4}
    heads = smallest.heads(KIND[line], lm)
    out = jd.generate(lm, PROMPTS, method=line, heads=heads, **asked)
    assert out.tokens == jd.generate(lm, PROMPTS, **asked).tokens


def test_layers_that_are_read():
    assert eagle3.layers_of(eagle3.Shape(), 32) == (1, 15, 28)
    assert eagle3.layers_of(eagle3.Shape(), 2) == (1, 0, 0)
    with pytest.raises(jd.api.InputError, match="reads layer 9"):
        eagle3.layers_of(eagle3.Shape(taps=(9,)), 4)


def sharp():
    """A toy without near ties: what is soft cannot be told from its second choice in few steps."""
    lm = toys.model(seed=5)
    head = {"kernel": 6 * lm.params["head"]["kernel"]}
    return jd.api.from_params(lm.config, lm.params | {"head": head})


SHARP = sharp()


def test_the_overfit_gate_of_eagle3():
    asked = {"settings": {"num_passes": 5}, "num_new": 31, "lr": 3e-3}
    assert gate.passes("eagle3", depth=5, lm=SHARP, **asked)


@pytest.mark.parametrize("recipe", ["eagle1", "eagle2"])
def test_the_overfit_gate_of_eagle(recipe):
    settings = {"noise": 0.1, "token_weight": 1.0}
    asked = {"settings": settings, "num_new": 31, "lr": 1e-2, "steps": 1500}
    assert gate.passes(recipe, depth=5, lm=SHARP, **asked)


@pytest.mark.slow
def test_the_gate_can_fail():
    assert not gate.passes("eagle3", depth=5, steps=3, lm=SHARP, num_new=31)


def test_eagle_has_no_norm_before_its_attention():
    lm = toys.model()
    params = eagle.init(eagle.Shape(), lm.config, jax.random.key(0), lm.params)
    assert set(params) == {"attn", "mlp_norm", "mlp", "enter"}
