"""Chimera: trigrams, the layout of training, the past, what drafts say, and the gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import options
from jaxdecode.evals import toys as smallest
from jaxdecode.heads import chimera
from jaxdecode.training.objective import program
from jaxdecode.training.objectives import chimera as objective
from tests import toys
from tests.training import gate

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [5, 3, 5]]
TEXT = [5, 2, 9, 4, 4, 1, 3, 8, 6, 2, 7, 5]


def assert_close(ours, theirs):
    """Equal up to float32, which keeps six digits of the largest entry."""
    assert np.abs(ours - theirs).max() <= 2e-6 * np.abs(theirs).max()


def bound(lm, shape=None):
    return chimera.bind(shape or chimera.Shape(), lm.config, jnp.float32)


def outs_of(lm, params, tokens, num_heads=4):
    """The target's states of a text, and what the layer says in every pass."""
    data = gate.batch([tokens])
    hidden = lm.target.forward(lm.params, data.tokens, program(data), None).hidden
    outs = objective.unrolled(bound(lm), params, lm.params, data, hidden, lm.bound, num_heads)
    return hidden, outs


def test_a_feature_depends_on_its_token_and_the_two_before():
    lm = toys.model()
    parts, params = bound(lm), smallest.heads("chimera", lm).params
    tokens = np.asarray(TEXT)

    def features(tokens):
        trigrams = objective._trigrams(gate.batch([tokens.tolist()]))
        return parts.trigrams(params, lm.target.embed(lm.params, trigrams[0]))

    plain = features(tokens)
    for place in range(len(TEXT)):
        changed = tokens.copy()
        changed[place] = 11
        differs = np.any(np.asarray(features(changed) != plain), axis=-1)
        wanted = set(range(place, min(place + 3, len(TEXT))))
        # The first token also stands for what is missing before it.
        assert set(np.flatnonzero(differs).tolist()) == wanted


@pytest.mark.parametrize("own_head", [False, True])
def test_an_untrained_head_adds_the_targets_scores_of_both_states(own_head):
    lm = toys.model()
    shape = chimera.Shape(own_head=own_head)
    params = chimera.init(shape, lm.config, jax.random.key(0), lm.params)
    x = jax.random.normal(jax.random.key(1), (5, lm.config.hidden_size))
    scores = bound(lm, shape).scores(params, x, x, lambda y: lm.target.logits(lm.params, y))
    np.testing.assert_allclose(scores, 2 * lm.target.logits(lm.params, x), rtol=1e-5, atol=1e-5)


def test_the_layer_against_plain_numpy():
    """One place of one text: what pass 2 says there, row by row as the paper has it."""
    lm = toys.model()
    params, c = smallest.heads("chimera", lm).params, lm.config
    hidden, outs = outs_of(lm, params, TEXT)
    place, passes = 6, 2
    flat = {k: np.asarray(v, np.float64) for k, v in smallest_flat(params).items()}
    embed = np.asarray(lm.params["embed"]["embedding"], np.float64)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps) * scale

    def silu(x):
        return x / (1 + np.exp(-x))

    def feature(t):
        x = np.concatenate([embed[TEXT[i]] for i in (t - 2, t - 1, t)])
        x = x + silu(x @ flat["trigram/block/kernel"] + flat["trigram/block/bias"])
        return x @ flat["trigram/out/kernel"] + flat["trigram/out/bias"]

    rows = [np.asarray(hidden[0, t], np.float64) for t in range(place + 1)]
    rows += [feature(place + s) for s in range(1, passes + 1)]
    x = np.stack(rows)
    read = norm(x, flat["attn_norm/scale"])
    qkv = np.einsum("td,dkgh->tkgh", read, flat["attn/qkv/kernel"])
    half = c.head_dim // 2
    angle = np.arange(len(rows))[:, None] * c.rope.theta ** (-np.arange(half) / half)

    def turn(y):
        a, b = y[..., :half], y[..., half:]
        cos, sin = (f(angle).reshape(-1, *[1] * (y.ndim - 2), half) for f in (np.cos, np.sin))
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    query, key, value = turn(qkv[:, :, :-2]), turn(qkv[:, :, -2]), qkv[:, :, -1]
    scores = np.einsum("kgh,skh->kgs", query[-1] * c.query_scale, key)
    law = np.exp(scores - scores.max(-1, keepdims=True))
    law /= law.sum(-1, keepdims=True)
    mixed = np.einsum("kgs,skh->kgh", law, value).reshape(-1)
    y = x[-1] + mixed @ flat["attn/o/kernel"].T
    gate_up = np.einsum("d,dpi->pi", norm(y, flat["mlp_norm/scale"]), flat["mlp/gate_up/kernel"])
    y = y + (silu(gate_up[0]) * gate_up[1]) @ flat["mlp/down/kernel"].T
    assert_close(outs[passes - 1][0, place], y)


def smallest_flat(params):
    return {
        "/".join(str(k.key) for k in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def test_a_place_sees_the_text_before_it_and_its_own_drafts():
    lm = toys.model()
    params = smallest.heads("chimera", lm).params
    _, plain = outs_of(lm, params, TEXT)
    for changed in range(3, len(TEXT)):
        tokens = list(TEXT)
        tokens[changed] = 11
        _, outs = outs_of(lm, params, tokens)
        for s, (a, b) in enumerate(zip(outs, plain, strict=True), 1):
            differs = np.any(np.asarray(a[0] != b[0]), axis=-1)
            # The last s places have no draft in this pass.
            seen = [place + s >= changed for place in range(len(TEXT) - s)]
            assert differs[: len(TEXT) - s].tolist() == seen


def test_the_past_is_the_targets_states_and_drafts_are_those_of_training():
    lm = toys.model()
    heads = smallest.heads("chimera", lm)
    made = toys.built(lm, "chimera", heads=heads)
    state = toys.after_steps(made, 3, PROMPTS)
    parts, own = bound(lm), state.drafter
    greedy = toys.request(lm, options.Options(), PROMPTS)
    proposal, _ = made.method.drafter.propose(made.weights, own, greedy, state.canvas, None)
    for b in range(len(PROMPTS)):
        size = int(state.canvas.length[b]) + 1
        assert int(own.num_rows[b]) == size - 1
        parent, tokens = np.asarray(proposal.parent[b]), np.asarray(proposal.tokens[b])
        path, node = [], int(np.argmax(proposal.depth[b]))
        while node > 0:
            path, node = [node, *path], int(parent[node])
        text = np.asarray(state.canvas.tokens[b, :size]).tolist() + tokens[path].tolist()
        hidden, outs = outs_of(lm, heads.params, text, len(path))
        rows = parts.rows(heads.params, hidden, jnp.arange(len(text))[None])
        for ours, theirs in zip((own.cache.key, own.cache.value), rows, strict=True):
            axis = -1 if ours is own.cache.key else -2
            ours, theirs = (
                jnp.take(x[0][i], jnp.arange(size - 1), axis=axis)
                for x, i in ((ours, b), (theirs, 0))
            )
            assert_close(ours, theirs)
        for k, node in enumerate(path):
            at = hidden[0, size - 2], outs[k][0, size - 2]
            scores = parts.scores(heads.params, *at, lambda x: lm.target.logits(lm.params, x))
            siblings = np.flatnonzero(parent == parent[node])
            assert tokens[node] in np.argsort(-np.asarray(scores))[: len(siblings)]


def test_every_part_learns_and_the_target_does_not():
    assert gate.learns_alone("chimera", gate.batch([TEXT, TEXT[2:8]]))


def test_sampled_tokens_are_those_of_plain_decoding():
    lm, asked = toys.model(), {"max_new_tokens": 16, "temperature": 0.9, "seed": 4}
    heads = smallest.heads("chimera", lm)
    out = jd.generate(lm, PROMPTS, method="chimera", heads=heads, **asked)
    assert out.tokens == jd.generate(lm, PROMPTS, **asked).tokens


QUICK = {"lm": toys.model(seed=5), "num_new": 25, "shape": {"num_heads": 3}}


def test_the_overfit_gate():
    assert gate.passes("chimera", depth=3, **QUICK)


def test_the_gate_can_fail():
    assert not gate.passes("chimera", depth=3, steps=3, **QUICK)
