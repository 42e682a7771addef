"""NeoDiff: what it has learned it writes, and hard tokens get more noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxdecode as jd
from jaxdecode.continuous import neodiff, schedules
from jaxdecode.core.protocols import Models, Weights
from jaxdecode.heads import neodiff as net
from jaxdecode.models.bidirectional import Side
from tests import toys
from tests.continuous import learned

SIZES = tuple(learned.NEODIFF.items())


@pytest.fixture(scope="module")
def heads():
    return learned.heads("neodiff", SIZES, 400, 1e-2)[0]


def prompts(num, seed=0):
    data = learned.texts(jax.random.key(seed), num)
    lengths = np.asarray(data.segments.sum(1)) // 3
    return [np.asarray(data.tokens[b])[:n].tolist() for b, n in enumerate(lengths)]


def write(heads, rows, **asked):
    asked = {"max_new_tokens": 12, "steps": 10, "batch_size": 64} | asked
    return jd.generate(toys.model(), rows, method="neodiff", heads=heads, **asked)


def test_it_writes_what_it_has_learned(heads):
    rows = prompts(64)
    for asked in ({}, {"levels": "same", "clamp": True}):
        out = write(heads, rows, **asked)
        copied = [new[: len(row)] == row for new, row in zip(out.tokens, rows, strict=True)]
        long = [len(new) == 2 * len(row) for new, row in zip(out.tokens, rows, strict=True)]
        assert np.mean(copied) > 0.95 and np.mean(long) > 0.95, asked
    assert out.stats[0].nfe == 10 and set(out.finish_reasons) == {"stop"}


def test_hard_tokens_are_given_more_noise(heads):
    """Copies are easy, the tokens after them are drawn by chance: the predictor tells them."""
    data = learned.texts(jax.random.key(9), 16)
    rows = [np.asarray(data.tokens[b])[: int(data.segments[b].sum())] for b in range(16)]
    shape = heads.spec.shape
    correlations = []
    for row in rows:
        num = len(row) // 3
        easy = np.arange(2 * num) < num
        place = jnp.arange(2 * num)[None]
        source = jnp.arange(num)[None]
        across = jnp.ones((1, 2 * num, num), bool)
        states = net.encode(
            shape, heads.params, jnp.asarray(row[None, :num]), source, across[:, :num]
        )
        noise = shape.noise_scale * jax.random.normal(jax.random.key(num), (1, 2 * num, 16))
        own = Side(noise, place, jnp.ones((1, 2 * num, 2 * num), bool))
        beside, most = Side(states, source, across), jnp.full((1, 2 * num), 99.0)
        said = net.denoise(shape, heads.params, own, jnp.zeros_like(noise), most, beside)
        own = own._replace(x=said)
        time = jnp.full((1, 2 * num), 0.25)
        level = net.levels(shape, heads.params, own, time, beside)
        correlations.append(stats.spearmanr(np.asarray(level[0]), ~easy)[0])
    assert np.mean(correlations) > 0.5


def test_one_clock_is_plain_continuous_diffusion(heads):
    """`levels="same"` against a loop in NumPy over the times, with the same noise."""
    shape = heads.spec.shape
    config = neodiff.Config(steps=4, levels="same")
    method = neodiff.make(config, Models(toys.model().bound, None, heads.spec))
    rng = np.random.default_rng(0)
    noises = rng.normal(size=(5, 1, 4, shape.latent_size)).astype(np.float32)
    tokens = jnp.asarray([[3, 4]])
    weights = Weights(None, heads=heads.params)
    source = type("Source", (), {"tokens": tokens, "real": jnp.ones((1, 2), bool)})
    memory, lengths = method.encode(weights, source), jnp.asarray([4])
    state = method.begin(jnp.asarray(noises[0]))
    for index in range(4):
        noise = jnp.asarray(noises[index + 1])
        state = method.step(weights, memory, lengths, state, jnp.int32(index), noise)

    place, seen = jnp.arange(4)[None], jnp.ones((1, 4, 4), bool)
    beside = Side(memory.states, jnp.arange(2)[None], jnp.ones((1, 4, 2), bool))
    noisy, clean = shape.noise_scale * noises[0], np.zeros_like(noises[0])
    steps = zip((99, 99, 99, 50), (99, 99, 50, 0), noises[1:], strict=True)
    for level, after, noise in steps:
        levels = jnp.full((1, 4), float(level))
        own = Side(jnp.asarray(noisy), place, seen)
        clean = net.denoise(shape, heads.params, own, jnp.asarray(clean), levels, beside)
        kept = 1 - np.sqrt(after / 99 + 1e-4)
        kept = max(kept, 1e-8)
        noisy = np.sqrt(kept) * np.asarray(clean) + np.sqrt(1 - kept) * 6.5 * noise
    np.testing.assert_allclose(state.clean, clean, atol=2e-4)
    assert schedules.rate(0.25, 100) == 49.5


def test_more_steps_and_other_seeds_are_other_texts(heads):
    rows = prompts(8)
    one = write(heads, rows)
    assert write(heads, rows).tokens == one.tokens
    assert write(heads, rows, seed=1).tokens != one.tokens
    two = write(heads, rows, n=2)
    assert two.tokens[::2] == one.tokens != two.tokens[1::2]


def test_options_outside_their_range_are_refused():
    for bad in ({"steps": 0}, {"levels": "all"}, {"clamp": 3}):
        with pytest.raises(jd.errors.InputError, match=next(iter(bad))):
            neodiff.Config(**bad)
