"""Several states from one row: the pool of an image, the layout, its past, soft rows, the gate."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import engine as engines
from jaxdecode import options
from jaxdecode.core import loop, masks
from jaxdecode.evals import toys as smallest
from jaxdecode.heads import flash_sd
from jaxdecode.training.objective import program
from jaxdecode.training.objectives import flash_sd as objective
from tests import toys
from tests.training import gate

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
IMAGE = {"block": 3, "num_queries": 2, "image_token": 0}
# Texts before, behind and without an image of zeros; the last ends with its image.
IMAGES = [[3, 0, 0, 0, 1, 5], [2], [0, 0, 5, 3, 5, 1, 4, 1, 3], [4, 0, 0, 2]]
TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
close = functools.partial(np.testing.assert_allclose, atol=1e-5)


def pooled(queries, embedded, features, image, chunk=None):
    """What an image is mixed to, read in chunks."""
    size = features.shape[1]
    pool = flash_sd.no_image(1, len(queries), features.shape[-1])
    for first in range(0, size, chunk or size):
        part = slice(first, first + (chunk or size))
        pool = pool.add(queries, embedded[:, part], features[:, part], image[:, part])
    return pool.read()


def test_queries_mix_images_as_the_paper_says():
    rng = np.random.default_rng(0)
    embedded, features = jnp.float32(rng.normal(size=(2, 1, 6, 8)))
    image = jnp.asarray([[False, True, True, True, True, False]])
    same = pooled(jnp.zeros((2, 8)), embedded, features, image)
    for found, rows in zip(same, (embedded, features), strict=True):
        close(found[0, 1], rows[0, 1:5].mean(0))
    one = features[0, 3] * 1e4
    chosen = pooled(one[None], embedded, features, image)
    best = int(jnp.argmax(jnp.where(image[0], features[0] @ one, -jnp.inf)))
    close(chosen[1][0, 0], features[0, best])
    queries = jnp.float32(rng.normal(size=(2, 8)))
    whole = pooled(queries, embedded, features, image)
    order = jnp.asarray([0, 4, 2, 1, 3, 5])
    moved = pooled(queries, embedded[:, order], features[:, order], image)
    parts = pooled(queries, embedded, features, image, chunk=1)
    for found, swapped, chunked in zip(whole, moved, parts, strict=True):
        close(found, swapped)
        close(found, chunked)
    score = np.asarray(queries @ features[0, 1:5].T) * 8**-0.5
    law = np.exp(score) / np.exp(score).sum(-1, keepdims=True)
    close(whole[0][0], law @ np.asarray(embedded[0, 1:5]))
    none = pooled(queries, embedded, features, jnp.zeros((1, 6), bool))
    assert not np.any(none[0]) and not np.any(none[1])


def test_row_j_says_the_states_behind_it():
    states, weight = objective.wanted_of(gate.batch([[1] * 6]), jnp.arange(6.0)[None, :, None], 2)
    assert states[0, :4, :, 0].tolist() == [[1, 2], [2, 3], [3, 4], [4, 5]]
    assert weight[0].tolist() == [[1, 1]] * 3 + [[1, 0]] + [[0, 0]] * 2


def test_texts_behind_an_image_by_hand():
    data = gate.batch([[3, 0, 0, 5, 4]])
    laid = jax.jit(lambda data: objective.lay(data, 0, 2))(data)
    sees = masks.dense(laid.program, num_slots=0, window=0)[1][0].astype(int)
    assert ["".join(map(str, row)) for row in np.asarray(sees)] == [
        "1000000",
        "0100000",
        "0010000",  # the token before the image knows nothing of it
        "0011000",
        "0010100",
        "1110010",
        "1110011",
    ]
    assert laid.program.positions[0, [0, 1, 2, 5, 6]].tolist() == [0, 1, 2, 3, 4]
    assert laid.image[0].tolist() == [False, True, True, False, False]


def fresh(lm, heads, tokens, told):
    """Rows of texts and what they say, as in training; `told` has the image's token in images."""
    shape, params = heads.spec.shape, heads.params
    own = flash_sd.bind(shape, lm.config, jnp.float32)
    data = gate.batch(tokens)
    laid = objective.lay(gate.batch(told), shape.image_token, shape.num_queries)

    @jax.jit
    def run(data, laid):
        entered = lm.target.embed(lm.params, data.tokens)
        hidden = lm.target.forward(lm.params, data.tokens, program(data), None).hidden
        following = jnp.pad(entered[:, 1:], ((0, 0), (0, 1), (0, 0)))
        pool = flash_sd.no_image(len(tokens), shape.num_queries, lm.config.hidden_size)
        mixed = pool.add(params["queries"], entered, hidden, laid.image).read()
        parts = own.pairs.enter(params, *mixed), own.pairs.enter(params, following, hidden)
        x = jnp.concatenate(parts, axis=1)
        logits = lm.target.logits(lm.params, own.states(params, x, laid.program))
        return own.pairs.rows(params, x, laid.program.positions), logits.argmax(-1)

    return *run(data, laid), np.asarray(laid.text)


def test_the_past_and_the_drafts_are_those_of_a_fresh_pass():
    lm = smallest.model()
    heads = gate.random_heads("flash_sd", IMAGE, lm)
    made = toys.built(lm, "flash_sd", heads=heads)
    state = toys.after_steps(made, 5, IMAGES)
    assert state.stats.num_accepted.sum() > 0
    greedy = toys.request(lm, options.Options(), IMAGES)
    propose = jax.jit(made.method.drafter.propose)
    drafts = propose(made.weights, state.drafter, greedy, state.canvas, None)[0].tokens
    tokens, past = np.array(state.canvas.tokens), state.drafter.past
    # What was written is text, whatever token it is.
    new = np.arange(tokens.shape[1]) >= np.asarray([len(prompt) for prompt in IMAGES])[:, None]
    (keys, values), said, text = fresh(lm, heads, tokens, np.where(new, 1, tokens))
    for b, prompt in enumerate(IMAGES):
        size = int(state.canvas.length[b])
        rows = np.flatnonzero(np.append([0 in prompt] * 2, text[b, :size]))
        num = int(past.num_rows[b])
        assert num == len(rows)
        close(past.cache.key[0][b, :, :, :num], keys[0][b][:, :, rows])
        close(past.cache.value[0][b, :, :num], values[0][b][:, rows])
        np.testing.assert_array_equal(drafts[b, 1:], said[b, 2 + size - 1])


def test_chunks_of_a_prompt_make_one_past():
    lm = smallest.model()
    heads = gate.random_heads("flash_sd", IMAGE, lm)
    made = toys.built(lm, "flash_sd", heads=heads)
    prompts = [[0, 0, 5, 0, 5, 1, 4, 1, 3], [4, 0, 0, 2, 1], [2, 1], [1]]
    request = toys.request(lm, options.Options(max_new_tokens=8), prompts)
    whole = engines.prefilled(made, request, prompts, 8)
    canvas, drafter = whole.canvas, made.method.drafter
    state = drafter.init(made.weights, request, canvas, None, None)
    data = gate.batch(np.asarray(canvas.tokens[:, :12]))
    output = lm.target.forward(lm.params, data.tokens, program(data), None, ("embed",))
    absorb = jax.jit(drafter.absorb)
    for first in range(0, 12, 4):
        part = dataclasses.replace(
            output,
            hidden=output.hidden[:, first : first + 4],
            taps={"embed": output.taps["embed"][:, first : first + 4]},
        )
        num_new = jnp.clip(canvas.length - first, 0, 4)
        state = absorb(made.weights, state, canvas, jnp.int32(first), num_new, part)
    theirs = whole.drafter
    np.testing.assert_array_equal(state.past.num_rows, theirs.past.num_rows)
    for b in range(3):
        size = int(state.past.num_rows[b])
        ours, wanted = state.past, theirs.past
        close(ours.cache.key[0][b, :, :, :size], wanted.cache.key[0][b, :, :, :size])
        close(ours.cache.value[0][b, :, :size], wanted.cache.value[0][b, :, :size])
        close(ours.last[b], wanted.last[b])


def soft_start(lm, name, prompts, soft, **asked):
    """A line's state before its first step, for prompts that begin with soft rows."""
    made = toys.built(lm, name, **asked)
    request = toys.request(lm, options.Options(max_new_tokens=16, temperature=0.9), prompts)
    state = engines.prefilled(made, request, prompts, 16)
    canvas, drafter = state.canvas, made.method.drafter
    data = gate.batch(np.asarray(canvas.tokens[:, :32]))
    rows = lm.target.embed(lm.params, data.tokens).at[:, : soft.shape[1]].set(soft)
    output = lm.target.forward(lm.params, rows, program(data), None, ("embed",))
    cache = made.model.cache.write(state.cache, output.rows, jnp.zeros(4, jnp.int32))
    own = state.drafter
    if drafter.absorb is not None:
        own = drafter.init(made.weights, request, canvas, None, None)
        own = drafter.absorb(made.weights, own, canvas, jnp.int32(0), canvas.length, output)
    state = dataclasses.replace(state, cache=cache, drafter=own)
    run = functools.partial(loop.run, target=made.model.target, method=made.method)
    return run(made.weights, request, state, jnp.int32(20))


def test_soft_rows_in_front_of_a_prompt():
    lm = smallest.model()
    heads = gate.random_heads("flash_sd", IMAGE, lm)
    prompts = [[0] * 8 + [3, 1, 4, 1, 5], [0] * 8 + [2], [0] * 8 + [1, 1, 5, 3, 5, 2, 4]]
    soft = jax.random.normal(jax.random.key(0), (4, 8, lm.config.hidden_size))
    state = soft_start(lm, "flash_sd", prompts, soft, heads=heads)
    plain = soft_start(lm, "ar", prompts, soft)
    np.testing.assert_array_equal(state.canvas.tokens[:3], plain.canvas.tokens[:3])
    assert state.stats.num_accepted.sum() > 0
    rows = [2 + len(prompt) - 8 + 15 for prompt in prompts]
    assert state.drafter.past.num_rows[:3].tolist() == rows, "two rows stand for eight"
    other = soft_start(lm, "ar", prompts, -soft)
    assert (other.canvas.tokens != plain.canvas.tokens).any(), "the rows matter"


def test_nothing_flows_into_the_target():
    lm, sizes = toys.model(), IMAGE | {"image_token": 1}
    made, _ = gate.objective("flash_sd", shape=sizes)
    params = gate.random_heads("flash_sd", sizes).params
    data = gate.batch([TEXT, TEXT[2:8]])

    def loss(params, target):
        return made.loss(params, target, data, jax.random.key(0), gate.MOMENT)[0]

    own, others = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, lm.params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(own))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(others))


def test_sampled_tokens_are_those_of_plain_decoding():
    asked = {"max_new_tokens": 24, "temperature": 0.9, "seed": 4}
    lm = toys.model()
    heads = gate.random_heads("flash_sd", {"image_token": 5, "num_queries": 3})
    out = jd.generate(lm, PROMPTS, method="flash_sd", heads=heads, **asked)
    assert out.tokens == jd.generate(lm, PROMPTS, **asked).tokens


QUICK = {
    "lm": toys.model(seed=5),
    "num_new": 25,
    "shape": {"block": 4},
    "settings": {"noise": 0.02},
}


def test_the_overfit_gate():
    assert gate.passes("flash_sd", depth=4, **QUICK)


@pytest.mark.slow
def test_the_gate_can_fail():
    assert not gate.passes("flash_sd", depth=4, steps=3, **QUICK)
