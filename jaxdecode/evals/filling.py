"""The exact law of a text that is filled slot by slot, of a model with few tokens.

A canvas of n slots over V tokens, the last of which means undecided, is a number of n digits; the
model is asked about all of them once. From there on it is sums: by the chain rule for the sampler
that decides one slot per step, and for any other rule by showing it every canvas with every
combination of candidates and weighing what it commits with their chance.

    ask = conditionals(toys.denoiser(), prompt, 4, temperature=0.9)
    variation(one_by_one(ask, "random"), by_rule(ask, select))
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdecode.api import LanguageModel
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.types import Candidates, Canvas, Request, Sampling, Window

# Rules decide at least one slot per step, so this is far more than they need.
_STEPS_PER_SLOT = 4


class Conditionals(NamedTuple):
    """What a model says about every canvas C = V^n.

    Attributes:
        canvas: the digits of each canvas; the largest digit is an undecided slot.
        scores: the model's scores of every slot, the mask token's at -inf.
        probs: the law that slots are drawn from; zero where a slot is decided.
        prompt: the text before the slots.
    """

    canvas: Int[np.ndarray, "C n"]
    scores: Float[np.ndarray, "C n V"]
    probs: Float[np.ndarray, "C n V"]
    prompt: tuple[int, ...]

    @property
    def open(self) -> Bool[np.ndarray, "C n"]:
        """Undecided slots."""
        return self.canvas == self.probs.shape[-1] - 1

    @property
    def place(self) -> Int[np.ndarray, "n"]:
        """What a digit of each slot is worth."""
        num_slots, size = self.probs.shape[1:]
        return size ** np.arange(num_slots - 1, -1, -1)


def conditionals(
    lm: LanguageModel, prompt: tuple[int, ...], num_new: int, temperature: float
) -> Conditionals:
    """Asks the model, which sees all of a text at once, about all canvases."""
    size = lm.config.vocab_size
    assert lm.config.denoiser is not None and lm.config.denoiser.mask_token == size - 1
    digits = np.indices((size,) * num_new).reshape(num_new, -1).T
    rows = np.concatenate([np.tile(prompt, (len(digits), 1)), digits], 1).astype(np.int32)
    scores = np.array(scores_whole(lm.params, rows, target=lm.target)[:, len(prompt) :], np.float64)
    scores[..., size - 1] = -np.inf
    sharp = scores / temperature
    probs = np.exp(sharp - sharp.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    return Conditionals(digits, scores, probs * (digits == size - 1)[..., None], prompt)


@functools.partial(jax.jit, static_argnames="target")
def scores_whole(params, rows, *, target):
    """Scores of all positions of rows that see each other, `[B, T, V]`."""
    batch, width = rows.shape
    program = MaskProgram(
        cached=jnp.zeros(batch, jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), rows.shape),
        num_new=jnp.full(batch, width, jnp.int32),
        rule="bidirectional",
    )
    return target.logits(params, target.forward(params, rows, program, None).hidden)


def one_by_one(ask: Conditionals, order: str) -> Float[np.ndarray, "..."]:
    """Law of the text when each step decides one slot; one axis per slot.

    Args:
        ask: the model.
        order: "left_to_right", "random"; "probability": the slot whose draw is likeliest;
            "margin", "entropy": the slot whose law has the largest or the smallest.
    """
    ways = {
        "left_to_right": _first_open,
        "random": _any_open,
        "probability": _likeliest,
        "margin": _largest_margin,
        "entropy": _smallest_entropy,
    }
    chance = ways[order](ask)
    num_slots, size = ask.probs.shape[1:]
    index, slot, token = np.nonzero(chance)
    goes_to = index + (token - (size - 1)) * ask.place[slot]
    law = _nothing_decided(ask)
    for _ in range(num_slots):
        law = np.bincount(
            goes_to, law[index] * chance[index, slot, token], minlength=len(ask.canvas)
        )
    return law.reshape((size,) * num_slots)


def _nothing_decided(ask: Conditionals) -> Float[np.ndarray, "C"]:
    law = np.zeros(len(ask.canvas))
    law[-1] = 1.0
    return law


def _first_open(ask: Conditionals) -> Float[np.ndarray, "C n V"]:
    first = ask.open & (np.cumsum(ask.open, 1) == 1)
    return ask.probs * first[..., None]


def _any_open(ask: Conditionals) -> Float[np.ndarray, "C n V"]:
    return ask.probs / np.maximum(ask.open.sum(1), 1)[:, None, None]


def _sure(ask: Conditionals) -> Float[np.ndarray, "C n V"]:
    """The model's own law of every slot, before the temperature."""
    found = np.exp(ask.scores - ask.scores.max(-1, keepdims=True))
    return found / found.sum(-1, keepdims=True)


def _largest_margin(ask: Conditionals) -> Float[np.ndarray, "C n V"]:
    ranked = np.sort(_sure(ask), -1)
    return _largest(ask, ranked[..., -1] - ranked[..., -2])


def _smallest_entropy(ask: Conditionals) -> Float[np.ndarray, "C n V"]:
    sure = _sure(ask)
    return _largest(ask, (sure * np.log(np.where(sure > 0, sure, 1.0))).sum(-1))


def _largest(ask: Conditionals, score: Float[np.ndarray, "C n"]) -> Float[np.ndarray, "C n V"]:
    chosen = np.where(ask.open, score, -np.inf).argmax(1)
    return ask.probs * (np.arange(score.shape[1]) == chosen[:, None])[..., None]


def _likeliest(ask: Conditionals) -> Float[np.ndarray, "C n V"]:
    """Every slot draws; the draw of the largest probability, before the temperature, is kept."""
    sure = _sure(ask)
    num_slots = ask.probs.shape[1]
    found = ask.probs.copy()
    for i in range(num_slots):
        for j in range(num_slots):
            if j == i:
                continue
            mine, theirs = sure[:, i, :, None], sure[:, j, None, :]
            # Equal ones go in order of slots.
            below = theirs < mine if j < i else theirs <= mine
            loses = (below * ask.probs[:, j, None, :]).sum(-1)
            found[:, i] *= np.where(ask.open[:, j, None], loses, 1.0)
    return found


def in_turn(
    lm: LanguageModel, prompt: tuple[int, ...], turns: tuple[int, ...], temperature: float
) -> Float[np.ndarray, "..."]:
    """Law of the text when slots are told in this order, each by those before it; an axis per slot.

    One plain pass per slot over all that may be before it: nothing else is in the text. The prompt
    sees itself, and a slot what is before it.
    """
    size, first = lm.config.vocab_size, len(prompt)
    law = np.ones(())
    for depth in range(len(turns)):
        before = np.indices((size,) * depth).reshape(depth, size**depth).T
        slot = np.asarray(turns[: depth + 1], np.int32)
        position = np.concatenate([np.arange(first), first + slot]).astype(np.int32)
        blocks = np.concatenate([np.zeros(first), 1 + np.arange(depth + 1)]).astype(np.int32)
        asked = [np.tile(prompt, (len(before), 1)), before, np.full((len(before), 1), size - 1)]
        rows = np.concatenate(asked, 1).astype(np.int32)
        scores = np.array(_last_scores(lm.params, rows, position, blocks, target=lm.target))
        scores = scores.astype(np.float64) / temperature
        scores[:, size - 1] = -np.inf
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        law = law[..., None] * probs.reshape(law.shape + (size,))
    return np.moveaxis(law, range(len(turns)), turns)


@functools.partial(jax.jit, static_argnames="target")
def _last_scores(params, rows, position, blocks, *, target):
    batch, width = rows.shape
    program = MaskProgram(
        cached=jnp.zeros(batch, jnp.int32),
        positions=jnp.broadcast_to(position, rows.shape),
        num_new=jnp.full(batch, width, jnp.int32),
        rule="block_causal",
        blocks=jnp.broadcast_to(blocks, rows.shape),
    )
    return target.logits(params, target.forward(params, rows, program, None).hidden[:, -1])


def by_rule(ask: Conditionals, select: Callable[..., Any], weights: Any) -> np.ndarray:
    """Law of the text when a commit rule decides; one axis per slot.

    The rule must be a function of the candidates, the step and what is decided, and draw nothing.
    """
    num_slots, size = ask.probs.shape[1:]
    index, tokens, chance = _combinations(ask)
    canvas, window, candidates, request = _shown(ask, index, tokens)
    decide = jax.jit(functools.partial(_decide, select))
    law = _nothing_decided(ask)
    for step in range(_STEPS_PER_SLOT * num_slots):
        now = jnp.full(len(index), step, jnp.int32)
        commit, reopen = decide(weights, request, canvas, window, candidates, now)
        digits = np.where(np.asarray(commit) & ask.open[index], tokens, ask.canvas[index])
        digits = np.where(np.asarray(reopen) & ~ask.open[index], size - 1, digits)
        moved = np.bincount(digits @ ask.place, law[index] * chance, minlength=len(law))
        if not ask.open[moved > 0].any():
            return moved.reshape((size,) * num_slots)
        law = moved
    return law.reshape((size,) * num_slots)


def _decide(select, weights, request, canvas, window, candidates, step):
    window = dataclasses.replace(window, step=step, calls=step)
    decision = select(weights, request, canvas, window, candidates)
    reopen = decision.reopen
    return decision.commit, jnp.zeros_like(decision.commit) if reopen is None else reopen


def _combinations(ask: Conditionals) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every canvas with every combination of draws for its open slots: which, tokens, chance."""
    num_canvases, num_slots, size = ask.probs.shape
    draws = np.indices((size - 1,) * num_slots).reshape(num_slots, -1).T
    index, draw = np.divmod(np.arange(num_canvases * len(draws)), len(draws))
    # Decided slots draw nothing: one stands for all.
    kept = (ask.open[index] | (draws[draw] == 0)).all(1)
    index, tokens = index[kept], draws[draw[kept]]
    taken = np.take_along_axis(ask.probs[index], tokens[..., None], 2)[..., 0]
    return index, tokens, np.where(ask.open[index], taken, 1.0).prod(1)


def _shown(
    ask: Conditionals, index: np.ndarray, tokens: np.ndarray
) -> tuple[Canvas, Window, Candidates, Request]:
    """What a rule sees of each combination."""
    rows, num_slots = tokens.shape
    start, size = len(ask.prompt), ask.probs.shape[-1]
    text = np.concatenate([np.tile(ask.prompt, (rows, 1)), ask.canvas[index]], 1).astype(np.int32)
    open = ask.open[index]
    slot = np.arange(text.shape[1])

    def full(value: int, dtype: Any = jnp.int32) -> jax.Array:
        return jnp.full(rows, value, dtype)

    canvas = Canvas(
        tokens=jnp.asarray(text),
        open=jnp.asarray(np.concatenate([np.zeros((rows, start), bool), open], 1)),
        length=full(start - 1),
        end=full(start + num_slots),
        done=full(False, bool),
        finish=full(0),
        stop_state=full(0),
        commit_step=jnp.full(text.shape, -1, jnp.int32),
        logprob=jnp.zeros(text.shape),
    )
    window = Window(
        tokens=jnp.asarray(text),
        first=full(0),
        num=full(text.shape[1]),
        cached=full(0),
        start=full(start),
        scored=jnp.broadcast_to(jnp.asarray(slot[start:], jnp.int32), tokens.shape),
        open=jnp.asarray(open),
        step=full(0),
        size=full(num_slots),
        calls=full(0),
        mask_token=size - 1,
    )
    scores = jnp.asarray(ask.scores[index], jnp.float32)
    drawn = jnp.asarray(tokens, jnp.int32)
    logprob = jnp.take_along_axis(jax.nn.log_softmax(scores), drawn[..., None], 2)[..., 0]
    request = Request(
        key=jnp.zeros((rows, 2), jnp.uint32),
        sampling=Sampling(temperature=jnp.ones(rows)),
        stop_tokens=full(-1)[:1],
    )
    return canvas, window, Candidates(tokens=drawn, logprob=logprob, scores=scores), request
