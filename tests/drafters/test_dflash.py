"""Block drafting: the layout by hand, blocks alone and in training, its cache, the gate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.masks import MaskProgram
from jaxdecode.errors import InputError
from jaxdecode.evals import toys as smallest
from jaxdecode.heads import dflash
from jaxdecode.training import blocks
from jaxdecode.training.objective import program
from jaxdecode.training.objectives import dflash as objective
from tests import toys
from tests.training import gate

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
SMALL = {"block": 4, "num_layers": 2}
TAPS = ("layer.0", "layer.1")
TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def test_the_layers_that_are_read():
    assert dflash.layers_of(dflash.Shape(), 36) == (1, 9, 17, 25, 33)
    assert dflash.layers_of(dflash.Shape(), 2) == (0, 1)
    with pytest.raises(InputError, match="the last one is 1"):
        dflash.layers_of(dflash.Shape(taps=(0, 2)), 2)
    with pytest.raises(InputError, match="taps="):
        dflash.Shape(taps=(2, 1))


def test_two_blocks_of_two_have_the_mask_of_the_paper():
    rows = blocks.sees(jnp.ones((1, 4), int), jnp.asarray([[1, 3]]), 2)[0, 4:]
    wanted = ["10001100", "10001100", "11100011", "11100011"]
    assert ["".join(map(str, row)) for row in np.asarray(rows).astype(int)] == wanted


def test_places_lose_weight_as_in_the_paper():
    weight = np.asarray(objective.decay(15, 7.0))
    np.testing.assert_allclose(weight[[0, 1, 7, 14]], [1.0, 0.8669, 0.3679, 0.1353], atol=1e-4)
    assert weight.sum() == pytest.approx(6.6306, abs=1e-4)


def drafter():
    lm = toys.model()
    heads = gate.random_heads("dflash", SMALL)
    shape = heads.spec.shape
    return lm, heads.params, dflash.bind(shape, lm.config, jnp.float32)


def context_of(lm, own, params, tokens):
    _, seen = toys.full_logits(lm, tokens, TAPS)
    return own.context(params, [jnp.asarray(tap)[None] for tap in seen.values()])


def trained_states(tokens):
    """Final states of the blocks at all places, as training computes them."""
    lm, params, own = drafter()
    laid = blocks.lay(gate.batch([tokens]), jax.random.key(0), block=4, num_places=None)
    x = dflash.enter(params, lm.target.embed(lm.params, jnp.asarray([tokens])), num_masks=3)
    flat = x.reshape(1, -1, x.shape[-1])
    context = context_of(lm, own, params, tokens)
    run = jax.jit(lambda x, laid, context: own.states(params, x, laid, context=context))
    return run(flat, laid.program, context).reshape(x.shape)[0]


@functools.lru_cache
def block_alone(own):
    return jax.jit(lambda params, x, mask, cached: own.states(params, x, mask, cached=cached)[0])


def decoded_states(tokens, place, positions):
    """Final states of the block at a place, as decoding computes them."""
    lm, params, own = drafter()
    context = context_of(lm, own, params, tokens)
    cached = jax.jit(own.rows)(params, context, jnp.arange(len(tokens))[None])
    embedded = lm.target.embed(lm.params, jnp.asarray([tokens[place]]))
    mask = MaskProgram(
        cached=jnp.asarray([place]),
        positions=jnp.asarray([positions]),
        num_new=jnp.asarray([4]),
        rule="bidirectional",
    )
    x = dflash.enter(params, embedded, num_masks=3)
    return block_alone(own)(params, x, mask, cached)


def test_a_block_is_the_same_in_training_and_in_decoding():
    states = trained_states(TEXT)
    for place in (0, 6):
        alone = decoded_states(TEXT, place, np.arange(place, place + 4))
        np.testing.assert_allclose(alone, states[place], atol=1e-5)


def test_masks_differ_by_their_positions_only():
    plain = decoded_states(TEXT, 5, np.asarray([5, 6, 7, 8]))
    swapped = decoded_states(TEXT, 5, np.asarray([5, 8, 7, 6]))
    np.testing.assert_allclose(swapped, plain[np.asarray([0, 3, 2, 1])], atol=1e-5)
    assert np.abs(plain[1] - plain[3]).max() > 1e-3


def test_a_block_sees_nothing_behind_its_first_token():
    states, other = trained_states(TEXT), trained_states(TEXT[:6] + [8] + TEXT[7:])
    np.testing.assert_array_equal(states[:6], other[:6])
    assert np.abs(states[6] - other[6]).max() > 1e-3


def test_context_rows_are_their_formula():
    _, params, own = drafter()
    rng = np.random.default_rng(0)
    taps = rng.normal(size=(2, 32))
    joined = taps.reshape(-1) @ np.asarray(params["context"]["kernel"], np.float64)
    wanted = joined / np.sqrt((joined**2).mean() + own.config.norm_eps)
    wanted = wanted * np.asarray(params["context"]["norm"]["scale"])
    found = own.context(params, [jnp.float32(tap)[None, None] for tap in taps])
    np.testing.assert_allclose(found[0, 0], wanted, rtol=1e-4)


def test_nothing_flows_into_the_target():
    made, _ = gate.objective("dflash", shape=SMALL)
    params = gate.random_heads("dflash", SMALL).params
    data = gate.batch([TEXT, TEXT[:5]])

    def loss(params, target):
        return made.loss(params, target, data, jax.random.key(0), gate.MOMENT)[0]

    own, others = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, toys.model().params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(own))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(others))


def test_the_cache_is_that_of_a_fresh_pass():
    lm, prompts = smallest.model(), [[3, 1, 4, 1, 5], [2], [2, 0, 5, 3, 5, 1, 4, 1, 3]]
    given = gate.random_heads("dflash", SMALL, lm)
    made = toys.built(lm, "dflash", heads=given)
    state = toys.after_steps(made, 6, prompts)
    assert state.stats.num_accepted[:3].sum() > 0
    own = dflash.bind(given.spec.shape, lm.config, jnp.float32)

    @jax.jit
    def fresh(data):
        seen = lm.target.forward(lm.params, data.tokens, program(data), None, TAPS).taps
        return own.rows(
            given.params, own.context(given.params, list(seen.values())), data.positions
        )

    rows = fresh(gate.batch(np.asarray(state.canvas.tokens)))
    ours = state.drafter.cache.key, state.drafter.cache.value
    for b in range(3):
        size = int(state.canvas.length[b])
        for layer in range(2):
            keys, values = ([part[layer][b] for part in (ours[i], rows[i])] for i in range(2))
            np.testing.assert_allclose(*(key[:, :, :size] for key in keys), atol=1e-5)
            np.testing.assert_allclose(*(value[:, :size] for value in values), atol=1e-5)


def test_sampled_tokens_are_those_of_plain_decoding():
    asked = {"max_new_tokens": 24, "temperature": 0.9, "seed": 4}
    lm, heads = toys.model(), gate.random_heads("dflash", SMALL)
    out = jd.generate(lm, PROMPTS, method="dflash", heads=heads, **asked)
    assert out.tokens == jd.generate(lm, PROMPTS, **asked).tokens


def test_the_overfit_gate():
    assert gate.passes("dflash", depth=3, shape=SMALL | {"num_layers": 1}, steps=150)


@pytest.mark.slow
def test_the_gate_can_fail():
    assert not gate.passes("dflash", depth=3, shape=SMALL | {"num_layers": 1}, steps=3)
