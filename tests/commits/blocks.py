"""Runs a commit rule over one block of given scores, with the loop's own writer and no model."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecode.core import commit
from jaxdecode.core.types import Candidates, Canvas, Request, Sampling, Window
from jaxdecode.sampling import noise


def rule(file, **options):
    """The `Commit` of a file in `commits/`."""
    module = importlib.import_module(f"jaxdecode.commits.{file}")
    return module.make(module.Config(**options), None)


def request(num_rows, stop_tokens=(), seed=0):
    """A greedy request whose rows have keys of their own."""
    return Request(
        key=jnp.asarray(np.stack([noise.row_key(seed, [b]) for b in range(num_rows)])),
        sampling=Sampling(temperature=jnp.zeros(num_rows)),
        stop_tokens=jnp.asarray([*stop_tokens, -1], jnp.int32),
    )


def canvas(num_rows, width, given=1):
    """`given` slots of text, then `width` undecided ones up to the end, and some past it."""
    slots = np.arange(given + width + 3)
    shape = (num_rows, len(slots))
    zeros = np.zeros(num_rows, np.int32)
    fields = dict(
        tokens=np.zeros(shape, np.int32),
        open=np.broadcast_to(slots >= given, shape),
        length=zeros + given - 1,
        end=zeros + given + width,
        done=zeros > 0,
        finish=zeros,
        stop_state=zeros,
        commit_step=np.full(shape, -1, np.int32),
        logprob=np.zeros(shape, np.float32),
    )
    return Canvas(**{name: jnp.asarray(value) for name, value in fields.items()})


def candidates(scores, tokens=None):
    """What a target with these scores puts into the slots: the likeliest tokens, or those given."""
    scores = jnp.asarray(scores, jnp.float32)
    logprobs = scores - jnp.log(jnp.exp(scores).sum(-1, keepdims=True))
    tokens = jnp.argmax(scores, -1) if tokens is None else jnp.asarray(tokens)
    picked = jnp.take_along_axis(logprobs, tokens[..., None], -1)[..., 0]
    return Candidates(tokens=tokens.astype(jnp.int32), logprob=picked, scores=scores)


def window(canvas, step, *, given=1, width, size=None):
    """The window over the undecided part of a canvas."""
    num_rows = canvas.tokens.shape[0]
    full = jnp.full(num_rows, 0, jnp.int32)
    slots = jnp.arange(given, given + width)
    return Window(
        tokens=canvas.tokens,
        first=full,
        num=full + canvas.tokens.shape[1],
        cached=full,
        start=full + given,
        scored=jnp.broadcast_to(slots, (num_rows, width)),
        open=canvas.open[:, slots] & ~canvas.done[:, None],
        step=full + step,
        size=full + (width if size is None else size),
        calls=full + step,
        mask_token=-1,
    )


def run(chosen, scores, *, given=1, asked=None, most=200, draw=None):
    """Fills a block by a rule; `scores(step, canvas)` or a fixed `[B, W, V]` array.

    With `draw`, a NumPy generator, candidates are draws in place of the likeliest tokens.

    Returns:
        The canvas at the end, and what was open in the block before every step and after the last:
        a boolean array `[steps + 1, B, W]`.
    """
    fixed = None if callable(scores) else np.asarray(scores, np.float32)
    first = scores(0, None) if fixed is None else fixed
    num_rows, width = first.shape[:2]
    asked = request(num_rows) if asked is None else asked
    text = canvas(num_rows, width, given)

    @jax.jit
    def advance(text, step, scores, noise):
        seen = window(text, step, given=given, width=width)
        drawn = candidates(scores, jnp.argmax(scores + noise, -1))
        decision = chosen.select(None, asked, text, seen, drawn)
        return commit.fill(asked, text, seen, drawn, decision, jnp.full(num_rows, step))

    history = []
    for step in range(most):
        history.append(np.asarray(text.open[:, given : given + width] & ~text.done[:, None]))
        if bool(text.done.all()):
            return text, np.stack(history)
        now = scores(step, text) if fixed is None else fixed
        noise = 0.0 if draw is None else draw.gumbel(size=now.shape)
        text = advance(text, jnp.int32(step), now, noise)
    raise AssertionError(f"not done after {most} steps: {history[-1]}")


def sizes(history):
    """Slots decided in every step, less those reopened: `[steps, B]`."""
    counts = history.sum(-1)
    return counts[:-1] - counts[1:]


def order(canvas, given=1):
    """The step that decided each slot of the block, `[B, W]`."""
    steps = np.asarray(canvas.commit_step)
    return steps[:, given:-3]
