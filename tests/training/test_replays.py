"""Replays of texts: against the loop and plain passes, and what a packed row makes of blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.evals import greedy_parallel
from jaxdecode.training import denoising, replays
from tests import toys
from tests.training import gate
from tests.training.test_denoising import packed

PROMPT, BLOCK, NEW = [3, 1, 4, 1, 5], 8, 20
LAWS = [{}, {"shifted": True}, {"block": 8}, {"block": 8, "shifted": True}]
POLICIES = {"right": replays.right_ones, "surest": replays.surest}


def answered(lm):
    """The target's own text, its commit steps, and the batch of both prompts."""
    prompts = [PROMPT, [9, 2]]
    asked = {"method": "llada", "block_length": BLOCK, "max_new_tokens": NEW}
    out = jd.generate(lm, prompts, **asked)
    rows = [prompt + answer for prompt, answer in zip(prompts, out.tokens, strict=True)]
    return prompts, out, joined(rows, [len(prompt) for prompt in prompts])


def joined(rows, prompts):
    """One text per row, each with a prompt of its own length."""
    batch = gate.batch(rows)
    place = np.arange(batch.tokens.shape[1])
    weight = batch.weight * (place >= np.asarray(prompts)[:, None])
    return jax.tree.map(jnp.asarray, dataclasses.replace(batch, weight=weight))


def trace_of(lm, batch, policy, size=BLOCK):
    asked = denoising.own_setting(lm.bound)
    run = jax.jit(lambda batch: replays.replay(asked, lm.params, batch, size, policy))
    return jax.tree.map(np.asarray, run(batch))


def labels_hold(trace):
    """Whether every slot was right in the pass that decided it."""
    last = trace.open.sum(-1) - 1
    learned = trace.open.any(-1)
    at = np.take_along_axis(trace.right, np.maximum(last, 0)[..., None], -1)[..., 0]
    return bool(at[learned].all()) and learned.any()


@pytest.mark.parametrize("law", LAWS)
def test_every_slot_of_the_samplers_own_text_is_right_when_it_is_decided(law):
    lm = toys.denoiser(**law)
    _, out, batch = answered(lm)
    trace = trace_of(lm, batch, replays.surest)
    assert labels_hold(trace)
    # The order is the loop's: passes before the slot's own, within its block.
    for row, (start, steps) in enumerate(zip((5, 2), out.steps, strict=True)):
        found = trace.open[row].sum(-1)[start : start + NEW] - 1
        for first, stop in slices(start, law.get("block")):
            wanted = np.argsort(np.argsort(steps[first:stop]))
            np.testing.assert_array_equal(found[first:stop], wanted)


def slices(start, own):
    """Blocks of an answer that begins at slot `start`, as parts of it."""
    begins = BLOCK - start % BLOCK if own else BLOCK
    bounds = [0, *range(begins, NEW, BLOCK), NEW]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def test_texts_of_others_are_not_right_when_they_are_decided():
    """The control: the labels are not right by construction."""
    lm = toys.denoiser()
    rng = np.random.default_rng(0)
    batch = joined([PROMPT + rng.integers(0, 60, NEW).tolist()], [5])
    assert not labels_hold(trace_of(lm, batch, replays.surest))


def test_greedy_passes_are_those_of_the_loop():
    lm = toys.denoiser()
    prompts, out, batch = answered(lm)
    trace = trace_of(lm, batch, replays.right_ones)
    passes = greedy_parallel.passes(lm, prompts, out.tokens, block_length=BLOCK)
    for row, start in enumerate((5, 2)):
        blocks = trace.open[row, start : start + NEW]
        each = [blocks[i : i + BLOCK].any(0).sum() for i in range(0, NEW, BLOCK)]
        assert sum(each) == passes[row]


@pytest.mark.parametrize("law", LAWS[:2])
@pytest.mark.parametrize("name", POLICIES)
def test_what_a_pass_shows_is_what_a_plain_pass_shows(name, law):
    lm = toys.denoiser(**law)
    mask, shift = lm.config.denoiser.mask_token, int(law.get("shifted", False))
    _, _, batch = answered(lm)
    trace = trace_of(lm, batch, POLICIES[name])
    row, start = np.asarray(batch.tokens[0]), 5
    later = np.arange(len(row)) >= start + BLOCK
    for step in range(int(trace.open[0, start : start + BLOCK].any(0).sum())):
        open = np.pad(trace.open[0, start : start + BLOCK, step], (start, NEW - BLOCK))
        scores = toys.whole(lm, np.where(open | later, mask, row))
        scores[:, mask] = -np.inf
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        for slot in range(start, start + BLOCK):
            law_here = probs[slot - shift]
            best = np.sort(law_here)[::-1]
            wanted = best[0] if open[slot] else law_here[row[slot]]
            assert trace.confidence[0, slot, step] == pytest.approx(wanted, rel=1e-3)
            entropy = -(law_here * np.log(np.where(law_here > 0, law_here, 1))).sum()
            assert trace.entropy[0, slot, step] == pytest.approx(entropy, rel=1e-3, abs=1e-5)
            margin = best[0] - best[1]
            assert trace.margin[0, slot, step] == pytest.approx(margin, rel=1e-2, abs=1e-5)
            assert trace.right[0, slot, step] == (open[slot] and law_here.argmax() == row[slot])


def test_blocks_begin_with_answers_and_lessons_hold_one_each():
    """A row of two texts and one with a prompt of 3 and 7 tokens after it; blocks of 2."""
    batch = jax.tree.map(jnp.asarray, packed())
    asked = denoising.setting(toys.model().bound, 3, False, 0)
    laid = replays.blocks(asked, batch, 2)
    np.testing.assert_array_equal(laid.inside, batch.weight > 0)
    assert laid.slot[1].tolist()[3:10] == [0, 1, 0, 1, 0, 1, 0]
    assert laid.slot[0].tolist()[:8] == [0, 1, 0, 1, 0, 0, 1, 0]
    number = np.arange(batch.tokens.size, dtype=np.float32).reshape(batch.tokens.shape)[..., None]
    open = np.broadcast_to(np.asarray(laid.inside)[..., None], number.shape)
    trace = replays.Trace(confidence=number, entropy=number, margin=number, open=open, right=open)
    found = replays.lessons(trace, laid, 2, jax.random.key(0))
    blocks = np.asarray(found.trace.confidence)[1, :, 0][np.asarray(found.passes)[1, :, 0]]
    width = batch.tokens.shape[1]
    wanted = {(3, 4), (5, 6), (7, 8), (9, None)}
    shown = {tuple(int(x) - width if x != 1 else None for x in block) for block in blocks}
    assert shown == wanted


def test_many_short_blocks_are_drawn_in_turn():
    """More answers than the lessons of a step hold: each is there in some step, none twice."""
    width = 24
    place = np.arange(width)
    batch = gate.batch([[1] * width])
    weight = (place % 2 == 1).astype(np.float32)[None]
    batch = jax.tree.map(jnp.asarray, dataclasses.replace(batch, weight=weight))
    asked = denoising.setting(toys.model().bound, 3, False, 0)
    laid = replays.blocks(asked, batch, 8)
    assert int((laid.inside & (laid.slot == 0)).sum()) == 12
    number = jnp.broadcast_to(place.astype(np.float32)[None, :, None], (1, width, 8))
    open = jnp.broadcast_to((weight > 0)[..., None], number.shape)
    trace = replays.Trace(confidence=number, entropy=number, margin=number, open=open, right=open)
    seen = set()
    for key in jax.random.split(jax.random.key(0), 40):
        found = replays.lessons(trace, laid, 8, key)
        assert (np.asarray(found.exists).sum(-1) == 1).all()
        first = np.asarray(found.trace.entropy)[0, :, 0, 0].tolist()
        assert len(set(first)) == len(first) == 3
        seen |= set(first)
    assert seen == set(range(1, width, 2))
