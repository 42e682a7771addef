"""Rules that read a trained network: against NumPy, their strict settings, and ends of texts."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import Heads
from jaxdecode.core.protocols import Commit, HeadSpec, Models, Weights
from jaxdecode.core.types import STOP_TOKEN
from jaxdecode.errors import InputError
from jaxdecode.evals import toys as smallest
from tests import toys
from tests.commits import blocks

RULES = ("learn2pd", "tracelock")
WIDTH, END = 12, 6
RNG = np.random.default_rng(5)
SCORES = RNG.normal(size=(6, WIDTH, 7)) * RNG.uniform(0.5, 4, size=(6, WIDTH, 1))
PROBS = np.exp(SCORES) / np.exp(SCORES).sum(-1, keepdims=True)
TOP = PROBS.max(-1)


def heads(name, width=WIDTH, scale=0.0):
    """Heads of a kind: as before training, or with noise of a scale."""
    lm = toys.denoiser()
    spec = HeadSpec(
        name, head_files.shape_of(name, {"block_length": width} if name == RULES[0] else {})
    )
    params = head_files.initial(spec, lm.config, jax.random.key(0), lm.params)
    noisy = jax.tree.map(
        lambda leaf: (
            leaf
            + scale
            * jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape), leaf.dtype)
        ),
        params,
    )
    return Heads(spec=spec, params=noisy, target=head_files.target_of(lm.config, lm.name))


def rule(name, given, **options):
    """The rule with its heads."""
    module = importlib.import_module(f"jaxdecode.commits.{name}")
    made = module.make(module.Config(**options), Models(toys.denoiser().bound, None, given.spec))
    weights = Weights(target=None, heads=given.params)
    return Commit(select=lambda _, *rest: made.select(weights, *rest))


def half_decided(num_rows=6):
    """A canvas of which every third slot is decided, on token 1; the block ends past the text."""
    text = blocks.canvas(num_rows, WIDTH)
    decided = jnp.arange(text.open.shape[1]) % 3 == 1
    return dataclasses.replace(
        text,
        tokens=jnp.where(decided, 1, text.tokens),
        open=text.open & ~decided,
        commit_step=jnp.where(decided, 0, text.commit_step),
        end=text.end - 2,
    )


def seen_by(text):
    """The window over it; slots past the end are not there."""
    window = blocks.window(text, 1, width=WIDTH)
    there = jnp.arange(1, 1 + WIDTH) < text.end[:, None]
    return dataclasses.replace(window, open=window.open & there)


def dense(params, x):
    return x @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)


def silu(x):
    return x / (1 + np.exp(-x))


def with_best(sure, open):
    best = np.where(open, TOP, -1).argmax(1)
    return sure | np.eye(WIDTH, dtype=bool)[best]


def decided(made, text, stop=()):
    window = seen_by(text)
    drawn = blocks.candidates(SCORES)
    decision = made.select(None, blocks.request(6, stop), text, window, drawn)
    return np.asarray(decision.commit), np.asarray(window.open)


@pytest.mark.parametrize("gamma", [0.5, 0.6, 0.7])
def test_the_filter_reads_what_the_slots_hold(gamma):
    given = heads("learn2pd", scale=1.0)
    text = half_decided()
    found, open = decided(rule("learn2pd", given, gamma=gamma), text)
    there = np.arange(1, 1 + WIDTH) < 1 + WIDTH - 2
    held = np.where(open, TOP, PROBS[..., 1])

    def wanted(confidence):
        hidden = np.maximum(dense(given.params["Dense_0"], confidence), 0)
        odds = dense(given.params["Dense_1"], hidden)
        return with_best(open & (1 / (1 + np.exp(-odds)) > gamma), open)

    np.testing.assert_array_equal(found, wanted(np.where(there, held, 1.0)))
    # Other conventions for decided slots, and for those past the end, decide otherwise.
    assert (found != wanted(np.where(there, TOP, 1.0))).any()
    assert (found != wanted(held)).any()


def features(open, size):
    rows = []
    for b in range(len(open)):
        left = np.flatnonzero(open[b])
        turn = left[np.argsort(-TOP[b][left], kind="stable")]
        rank = np.zeros(WIDTH)
        rank[turn] = np.arange(len(turn)) / len(left)
        entropy = -(PROBS[b] * np.log(PROBS[b])).sum(-1)
        ranked = np.sort(PROBS[b], -1)
        decided = np.full(WIDTH, 1 - len(left) / size)
        away = (np.arange(WIDTH) - left[0]) / WIDTH
        columns = (TOP[b], rank, entropy, ranked[:, -1] - ranked[:, -2], decided, away)
        rows.append(np.stack(columns, -1))
    return np.stack(rows)


def controller(params, seen, open):
    hidden = silu(dense(params["slot"], seen))
    block = (hidden * open[..., None]).sum(1) / open.sum(1)[:, None]
    wide = np.broadcast_to(block[:, None], hidden.shape)
    mixed = silu(dense(params["both"], np.concatenate([hidden, wide], -1)))
    return dense(params["score"], mixed)[..., 0] - dense(params["threshold"], block)


@pytest.mark.parametrize("part", [1 / 3, 2 / 3])
@pytest.mark.parametrize("most", [1, 3, 12])
def test_the_controller_takes_the_few_that_it_trusts_most(part, most):
    given = heads("tracelock", scale=0.5)
    text = half_decided()
    open = np.asarray(seen_by(text).open)
    odds = controller(given.params, features(open, WIDTH), open)
    # A bound that a part of the slots pass, and none meets.
    ranked = np.sort(odds[open])
    bound = ranked[int(part * len(ranked)) :][:2].mean()
    trusted = open & (odds >= bound)
    accept = float(1 / (1 + np.exp(-bound)))
    found, _ = decided(rule("tracelock", given, accept=accept, most=most), text)
    turn = np.argsort(np.argsort(np.where(trusted, -odds, np.inf), axis=1, kind="stable"), axis=1)
    np.testing.assert_array_equal(found, with_best(trusted & (turn < most), open))
    assert 0 < trusted.sum() < open.sum()


def test_an_end_token_is_trusted_where_all_before_it_is_decided():
    given = heads("tracelock", scale=0.5)
    text, free = half_decided(), dict(accept=1e-6, most=12)
    held, open = decided(rule("tracelock", given, **free), text, (END,))
    ends = SCORES.argmax(-1) == END
    first = np.eye(WIDTH, dtype=bool)[open.argmax(1)]
    wanted = with_best(open & (~ends | first), open)
    np.testing.assert_array_equal(held, wanted)
    trusting, _ = decided(rule("tracelock", given, guard_end=False, **free), text, (END,))
    np.testing.assert_array_equal(trusting, open)
    assert (held != open).any()


@pytest.mark.parametrize("name", RULES)
def test_heads_that_trust_nothing_are_the_plain_sampler(name):
    asked = {"max_new_tokens": 21, "block_length": 8, "stop_tokens": [7]}
    prompts = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
    blind = {"learn2pd": {"end_prediction": False}}.get(name, {})
    out = jd.generate(toys.denoiser(), prompts, method=name, heads=heads(name, 8), **asked, **blind)
    plain = jd.generate(toys.denoiser(), prompts, method="llada", **asked)
    assert out.tokens == plain.tokens and out.steps == plain.steps
    trusting = {"learn2pd": {"gamma": 0.01}, "tracelock": {"accept": 0.01}}[name]
    loose = jd.generate(
        toys.denoiser(), prompts, method=name, heads=heads(name, 8), **asked, **trusting
    )
    assert sum(s.nfe for s in loose.stats) < sum(s.nfe for s in plain.stats)


def answer_of_six():
    """64 slots: an answer of six, an end token the target is surest of, and sure slots behind."""
    level = np.where(np.arange(64) < 6, 1.0, 3.0)
    level[6] = 9.0
    token = np.arange(64) % 6
    token[6] = END
    return (np.arange(7) == token[:, None])[None] * level[:, None]


def test_nothing_behind_a_decided_end_is_paid_for():
    given, asked = heads("learn2pd", 64), blocks.request(1, (END,))
    text, history = blocks.run(rule("learn2pd", given), answer_of_six(), asked=asked)
    assert len(history) - 1 == 7
    assert int(text.length[0]) == 7 and int(text.finish[0]) == STOP_TOKEN
    assert np.asarray(text.open)[0, 8:].all()
    _, paid = blocks.run(
        rule("learn2pd", given, end_prediction=False), answer_of_six(), asked=asked
    )
    assert len(paid) - 1 == 64


def test_an_end_token_that_was_given_ends_nothing():
    """As in a template, or a prompt that shares its block."""
    given, asked = heads("learn2pd", 64), blocks.request(1, (END,))
    made, scores = rule("learn2pd", given), answer_of_six()
    text = blocks.canvas(1, 64)
    text = dataclasses.replace(
        text, tokens=text.tokens.at[0, 3].set(END), open=text.open.at[0, 3].set(False)
    )
    window = blocks.window(text, 1, width=64)
    decision = made.select(None, asked, text, window, blocks.candidates(scores))
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(decision.commit)[0]), [6])


def test_what_does_not_fit_is_refused():
    lm = toys.denoiser()
    with pytest.raises(InputError, match=r"block_length=4 does not fit.*blocks of 8"):
        jd.generate(lm, [[1, 2]], method="learn2pd", heads=heads("learn2pd", 8), block_length=4)
    with pytest.raises(InputError, match=r"block_length=32 does not fit.*blocks of 8"):
        jd.generate(lm, [[1, 2]], method="learn2pd", heads=heads("learn2pd", 8))
    with pytest.raises(InputError, match="needs trained heads of kind 'learn2pd'"):
        jd.generate(lm, [[1, 2]], method="learn2pd")
    with pytest.raises(InputError, match="does not use heads of kind 'learn2pd'"):
        jd.generate(lm, [[1, 2]], method="tracelock", heads=smallest.heads("learn2pd", lm))
    for name, option in (("learn2pd", "gamma"), ("tracelock", "accept")):
        for value in (0, 1, 1.5, float("nan")):
            with pytest.raises(InputError, match=rf"{option}=.*a number in \(0, 1\)"):
                jd.generate(lm, [[1, 2]], method=name, heads=heads(name, 8), **{option: value})
    with pytest.raises(InputError, match="most=0"):
        jd.generate(lm, [[1, 2]], method="tracelock", heads=heads("tracelock"), most=0)
