"""The policy of block lengths: what a size is worth, by hand, and what is learned of easy runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import Heads
from jaxdecode.core.protocols import TargetOutput
from jaxdecode.errors import InputError
from jaxdecode.training import denoising
from jaxdecode.training.objectives import ctrldiff_blocks
from tests import toys
from tests.training import gate

KIND = "ctrldiff_blocks"
SIZES, STEPS = (2, 4, 8), 2
# Runs of slots of one kind; in hard ones two neighbours have the same token, one of these.
RUN, FIRST, NUM = 16, 10, 8
MASK = toys.denoiser().config.denoiser.mask_token


@functools.cache
def target():
    """A model that knows easy runs by heart, and of hard ones that they come in pairs."""

    def forward(params, tokens, mask, cached, taps=(), acts=None):
        place = mask.positions
        other = jnp.where(place % 2 == 0, 1, -1) + jnp.arange(tokens.shape[1])
        twin = jnp.take_along_axis(tokens, jnp.broadcast_to(other, tokens.shape), 1, mode="clip")
        size = toys.denoiser().config.vocab_size
        easy = 16.0 * jax.nn.one_hot(place % 4, size)
        known = 16.0 * jax.nn.one_hot(twin, size)
        any_of = 16.0 * jnp.isin(jnp.arange(size), FIRST + jnp.arange(NUM))
        hard = jnp.where((twin == MASK)[..., None], any_of, known)
        is_easy = (place // RUN % 2 == 0)[..., None]
        return TargetOutput(hidden=jnp.where(is_easy, easy, hard), rows=(), taps={})

    lm = toys.denoiser()
    own = lm.target._replace(forward=forward, logits=lambda params, hidden: hidden)
    return dataclasses.replace(lm, target=own)


def texts(num, length, seed=0):
    rng = np.random.default_rng(seed)
    place = np.arange(length)
    pairs = np.repeat(rng.integers(FIRST, FIRST + NUM, (num, -(-length // 2))), 2, axis=1)
    return np.where(place // RUN % 2 == 0, place % 4, pairs[:, :length]).tolist()


@pytest.fixture(scope="module")
def trained():
    lm = target()
    made, spec = gate.objective(KIND, lm=lm, shape={"sizes": SIZES}, steps=STEPS)
    data = jax.tree.map(jnp.asarray, gate.batch(texts(32, 4 * RUN), prompt=1))
    params, values = gate.train(made, lm, data, steps=150, lr=2e-2)
    given = made.export(params, lm.params).heads
    judged = jax.jit(made.judge)(params, lm.params, data, jax.random.key(9), gate.MOMENT)
    known = head_files.target_of(lm.config, "runs")
    return Heads(spec=spec, params=given, target=known), values, judged


def blocks(steps):
    """Where blocks begin and how long they are; each has `STEPS` passes."""
    number = np.asarray(steps) // STEPS
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    return starts, np.diff([*starts, len(steps)])


def test_blocks_are_longer_before_easy_runs(trained):
    """In easy runs a long block costs nothing; in hard ones it guesses both tokens of a pair."""
    prompts = [row[:n] for n, row in enumerate(texts(RUN, RUN), 1)]
    new = 5 * RUN - 2
    asked = dict(method=KIND, heads=trained[0], steps=STEPS, temperature=1.0)
    out = jd.generate(target(), prompts, max_new_tokens=new, **asked)
    easy, hard = [], []
    for prompt, steps in zip(prompts, out.steps, strict=True):
        starts, sizes = blocks(steps)
        first = starts + len(prompt)
        # Where the whole of the longest block is of one kind, and of the text.
        pure = (first % RUN <= RUN - SIZES[-1]) & (starts + SIZES[-1] <= new)
        is_easy = first // RUN % 2 == 0
        easy += sizes[pure & is_easy].tolist()
        hard += sizes[pure & ~is_easy].tolist()
    assert min(len(easy), len(hard)) > 20
    error = np.sqrt(np.var(easy) / len(easy) + np.var(hard) / len(hard)) + 1e-3
    assert np.mean(easy) - np.mean(hard) > max(3.0, 5 * error), (np.mean(easy), np.mean(hard))


def test_it_is_worth_more_than_any_one_size(trained):
    given, values, (cost, metrics) = trained
    lm = target()
    made, _ = gate.objective(KIND, lm=lm, shape={"sizes": SIZES}, steps=STEPS)
    data = jax.tree.map(jnp.asarray, gate.batch(texts(32, 4 * RUN), prompt=1))
    _, fixed = jax.jit(made.loss)(given.params, lm.params, data, jax.random.key(9), gate.MOMENT)
    assert all(-cost > fixed[f"worth.{size}"] + 0.01 for size in SIZES)
    assert SIZES[0] < metrics["size"] < SIZES[-1]
    assert values[-20:].mean() < values[:5].mean()


def by_hand(lm, text, place, size, steps, num_blocks):
    """Log-probabilities of a text's tokens where `llada` would decide them, with whole passes."""
    found, open = {}, np.arange(len(text)) >= place
    for _ in range(num_blocks):
        if not open.any():
            break
        start = int(open.argmax())
        inside = list(range(start, min(start + size, len(text))))
        num = len(inside)
        for step in range(min(steps, num)):
            scores = np.array(toys.whole(lm, np.where(open, MASK, text)), np.float64)
            if lm.config.denoiser.shifted:
                scores = np.roll(scores, 1, axis=0)
            scores[:, MASK] = -np.inf
            law = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
            left = [i for i in inside if open[i]]
            due = num // steps + (step < num % steps)
            due = len(left) if step == steps - 1 else min(due, len(left))
            for i in sorted(left, key=lambda i: -law[i].max())[:due]:
                found[i], open[i] = law[i, text[i]], False
    return found


@pytest.mark.parametrize("shifted", [False, True])
def test_what_a_size_is_worth_is_its_formula(shifted):
    lm = toys.denoiser(shifted=shifted)
    cost, places = 0.3, [3, 9, 14]
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 60, n).tolist() for n in (19, 12, 16)]
    batch = jax.tree.map(jnp.asarray, gate.batch(rows, prompt=1, width=20))
    cut = (jnp.arange(20) >= jnp.asarray(places)[:, None]) & (batch.weight > 0)
    batch = dataclasses.replace(batch, weight=cut.astype(jnp.float32))
    config = ctrldiff_blocks.Config(steps=STEPS, cost=cost)
    shape = head_files.shape_of(KIND, {"sizes": SIZES})
    asked = denoising.own_setting(lm.bound)
    worth = functools.partial(ctrldiff_blocks.worth, config, shape, asked)
    found = np.asarray(jax.jit(worth)(lm.params, batch, jnp.asarray(places)))
    for row, place, values in zip(rows, places, found, strict=True):
        plain = by_hand(lm, row, place, SIZES[0], STEPS, SIZES[-1] // SIZES[0])
        for size, value in zip(SIZES, values, strict=True):
            told = by_hand(lm, row, place, size, STEPS, 1)
            num = len(told)
            gained = sum(told[i] - plain[i] for i in told)
            wanted = (gained - cost * min(num, STEPS)) / num
            assert float(value) == pytest.approx(wanted, abs=1e-4)


def test_tokens_that_tell_nothing_of_each_other_are_filled_at_once():
    """However random they are: nothing is lost, and only passes differ."""
    lm = toys.denoiser()

    def forward(params, tokens, mask, cached, taps=(), acts=None):
        nothing = jnp.zeros((*tokens.shape, lm.config.vocab_size))
        return TargetOutput(hidden=nothing, rows=(), taps={})

    target = lm.target._replace(forward=forward, logits=lambda params, hidden: hidden)
    asked = denoising.own_setting(dataclasses.replace(lm, target=target).bound)
    shape = head_files.shape_of(KIND, {"sizes": SIZES})
    config, place = ctrldiff_blocks.Config(steps=STEPS, cost=1.0), jnp.asarray([1])
    batch = jax.tree.map(jnp.asarray, gate.batch([list(range(12))], prompt=1))
    found = ctrldiff_blocks.worth(config, shape, asked, lm.params, batch, place)
    np.testing.assert_allclose(found[0], [-STEPS / size for size in SIZES], atol=1e-6)


def test_only_the_policy_learns():
    """Its last layer begins at zero, so the first has nothing to learn yet."""
    lm = toys.denoiser()
    rows = np.random.default_rng(0).integers(0, 60, (2, 20)).tolist()
    data = jax.tree.map(jnp.asarray, gate.batch(rows, prompt=1))
    still = ("Dense_0/kernel", "Dense_0/bias")
    asked = dict(lm=lm, still=still, shape={"sizes": (2, 4)}, steps=1)
    assert gate.learns_alone(KIND, data, **asked)


def test_places_are_in_answers_and_everywhere_in_them():
    rows = [list(range(12))] * 256
    batch = jax.tree.map(jnp.asarray, gate.batch(rows, prompt=4))
    cut, place = ctrldiff_blocks.cut_at(batch, jax.random.key(0))
    assert {*np.asarray(place).tolist()} == {*range(4, 12)}
    index = np.arange(12)
    np.testing.assert_array_equal(cut.weight > 0, index >= np.asarray(place)[:, None])


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="name a target that fills slots"):
        gate.objective(KIND)
    with pytest.raises(InputError, match="blocks of 8 tokens, which cannot end elsewhere"):
        gate.objective(KIND, lm=toys.denoiser(block=8))
    for name, value in (("steps", 0), ("cost", -1.0), ("explore", -1.0)):
        with pytest.raises(InputError, match=f"{name}="):
            ctrldiff_blocks.Config(**{name: value})
