"""The writer of windows against plain Python, on random canvases, candidates and decisions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecode.core import commit
from jaxdecode.core.types import (
    MAX_LENGTH,
    STOP_STRING,
    STOP_TOKEN,
    Candidates,
    Canvas,
    Decision,
    Request,
    Sampling,
    Window,
)
from jaxdecode.sampling.stop import compile_stop

BATCH, SLOTS, WIDTH, VOCAB = 16, 14, 5, 7
STOP = 6
# Token t is the letter "abcdefg"[t].
TABLE = compile_stop(("ab",), [bytes([97 + t]) for t in range(VOCAB)], VOCAB)


def random_case(rng, settles):
    """A canvas whose prompt, text, decided and open slots lie anywhere they may."""
    prompt = rng.integers(1, 5, BATCH)
    end = rng.integers(prompt + 1, SLOTS)
    slot = np.arange(SLOTS)
    is_open = (rng.random((BATCH, SLOTS)) < 0.6) | (slot >= end[:, None])
    is_open &= slot >= prompt[:, None]
    start = rng.integers(0, SLOTS - WIDTH + 1, BATCH)
    decided = ~is_open & (slot >= prompt[:, None])
    # Text is what was settled before: a part of the decided slots before the first open one.
    length = rng.integers(prompt - 1, is_open.argmax(1))
    canvas = Canvas(
        tokens=rng.integers(0, VOCAB, (BATCH, SLOTS)),
        open=is_open,
        length=length,
        end=end,
        done=rng.random(BATCH) < 0.2,
        finish=np.zeros(BATCH, np.int32),
        stop_state=np.zeros(BATCH, np.int32),
        commit_step=np.where(decided, 1, -1),
        logprob=np.zeros((BATCH, SLOTS), np.float32),
    )
    at = start[:, None] + np.arange(WIDTH)
    window = dict.fromkeys(("first", "num", "cached", "step", "size", "calls"), start)
    window = Window(
        tokens=at,
        start=start,
        scored=at,
        open=np.take_along_axis(is_open, at, 1) & (rng.random((BATCH, WIDTH)) < 0.9),
        mask_token=0,
        **window,
    )
    candidates = Candidates(
        tokens=rng.integers(0, VOCAB, (BATCH, WIDTH)),
        logprob=rng.normal(size=(BATCH, WIDTH)).astype(np.float32),
        scores=np.zeros((BATCH, WIDTH, VOCAB), np.float32),
    )
    decision = Decision(
        commit=rng.random((BATCH, WIDTH)) < 0.5,
        reopen=None if settles else rng.random((BATCH, WIDTH)) < 0.3,
        settles=settles,
    )
    return jax.tree.map(jnp.asarray, (canvas, window, candidates, decision))


def plain(row, window, candidates, decision):
    """One row, slot by slot."""
    if row.done:
        return row
    tokens, is_open, step, logprob = map(
        np.array, (row.tokens, row.open, row.commit_step, row.logprob)
    )
    unfinished = False
    for i in range(WIDTH):
        s = int(window.start) + i
        if decision.commit[i] and window.open[i] and s < row.end:
            tokens[s], is_open[s] = candidates.tokens[i], False
            step[s], logprob[s] = 9, candidates.logprob[i]
        elif decision.reopen is not None and decision.reopen[i] and not window.open[i]:
            again = row.commit_step[s] >= 0 and s > row.length
            is_open[s] |= again
            unfinished |= again
        unfinished |= bool(window.open[i] and is_open[s])
    final = int(np.argmax(is_open))
    if not decision.settles and unfinished:
        final = min(int(window.start), final)
    length, state, done, finish = int(row.length), int(row.stop_state), False, 0
    for s in range(length + 1, final):
        length, state = s, int(TABLE.next_state[state, tokens[s]])
        stop_token = tokens[s] == STOP and step[s] >= 0
        if stop_token or state == TABLE.match_state or s + 1 >= row.end:
            finish = MAX_LENGTH if state != TABLE.match_state else STOP_STRING
            done, finish = True, STOP_TOKEN if stop_token else finish
            break
    return dataclasses.replace(
        row,
        tokens=tokens,
        open=is_open,
        commit_step=step,
        logprob=logprob,
        length=length,
        stop_state=state,
        done=done,
        finish=finish,
    )


def test_what_is_written_is_what_plain_python_writes():
    request = Request(
        key=jnp.zeros((BATCH, 2), jnp.uint32),
        sampling=Sampling(temperature=jnp.zeros(BATCH)),
        stop_tokens=jnp.array([STOP, -1]),
        stop_table=TABLE.next_state,
    )
    rng, fill, ended = np.random.default_rng(0), jax.jit(commit.fill), set()
    for case in range(60):
        parts = random_case(rng, settles=case % 2 == 0)
        ours = jax.device_get(fill(request, *parts, jnp.full(BATCH, 9)))
        host = jax.device_get(parts)
        for b in range(BATCH):
            rows = [jax.tree.map(lambda leaf: leaf[b], part) for part in host]  # noqa: B023
            wanted = plain(*rows)
            for field in dataclasses.fields(Canvas):
                got = getattr(ours, field.name)[b]
                np.testing.assert_array_equal(got, getattr(wanted, field.name), field.name)
            ended.add(int(wanted.finish))
    assert ended == {0, STOP_TOKEN, STOP_STRING, MAX_LENGTH}


def test_nothing_given_and_no_text_is_ever_reopened():
    rng = np.random.default_rng(1)
    request = Request(
        key=jnp.zeros((BATCH, 2), jnp.uint32),
        sampling=Sampling(temperature=jnp.zeros(BATCH)),
        stop_tokens=jnp.array([-1]),
    )
    for _ in range(20):
        canvas, window, candidates, decision = random_case(rng, settles=False)
        every = dataclasses.replace(decision, reopen=jnp.ones((BATCH, WIDTH), bool))
        after = commit.fill(request, canvas, window, candidates, every, jnp.full(BATCH, 9))
        slot = jnp.arange(SLOTS)
        kept = (canvas.commit_step < 0) | (slot <= canvas.length[:, None])
        assert not (after.open & ~canvas.open & kept).any()
        assert (after.length >= canvas.length).all()
