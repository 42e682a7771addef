"""Where two runs of one prompt part, and whether rounding alone can explain it.

A forward pass over several tokens adds in another order than one over a single token, so two
scores that are equal up to rounding may swap. Such a place is a near tie: in a teacher-forced pass
both tokens score within a small gap of the best.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdecode.api import LanguageModel
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Target
from jaxdecode.core.types import Sampling
from jaxdecode.sampling import noise, warp

# Widths of the teacher-forced pass: one program for each multiple.
_WIDTH = 64


def first_difference(expected: Sequence[int], got: Sequence[int]) -> int | None:
    """The first place where two lists of tokens differ, or the shorter's end; None if equal."""
    for place, (one, other) in enumerate(zip(expected, got, strict=False)):
        if one != other:
            return place
    return None if len(expected) == len(got) else min(len(expected), len(got))


def gap(
    lm: LanguageModel,
    prompt: Sequence[int],
    expected: Sequence[int],
    got: Sequence[int],
    *,
    temperature: float,
    seed: int,
) -> float:
    """How far the worse of the two tokens is below the best score where the runs part.

    The scores are what the choice is made from, in units of logits: logits, and the noise of the
    position if the row is sampled. Infinite if one run only ends earlier.
    """
    place = first_difference(expected, got)
    if place is None:
        return 0.0
    if place == min(len(expected), len(got)):
        return float("inf")
    row = [*prompt, *expected[:place]]
    scores = choice_scores(lm, row, prompt, temperature=temperature, seed=seed)
    worse = min(scores[expected[place]], scores[got[place]])
    unit = temperature if temperature >= warp.GREEDY_BELOW else 1.0
    return float(scores.max() - worse) * unit


def choice_scores(
    lm: LanguageModel,
    tokens: Sequence[int],
    prompt: Sequence[int],
    *,
    temperature: float,
    seed: int,
) -> np.ndarray:
    """What the next token is the argmax of, from one pass over the whole row."""
    padded = np.zeros((1, -(-len(tokens) // _WIDTH) * _WIDTH), np.int32)
    padded[0, : len(tokens)] = tokens
    logits = _last_logits(lm.params, padded, jnp.int32(len(tokens)), target=lm.target)
    scores = np.asarray(warp.warp(logits, Sampling(temperature=jnp.float32(temperature)), None))
    if temperature < warp.GREEDY_BELOW:
        return scores
    key = jnp.asarray(noise.row_key(seed, prompt))
    drawn = noise.gumbel(key, jnp.int32(len(tokens)), purpose=noise.TOKEN, size=len(scores))
    return scores + np.asarray(drawn)


@functools.partial(jax.jit, static_argnames="target")
def _last_logits(
    params: object, row: Int[Array, "1 T"], size: Int[Array, ""], *, target: Target
) -> Float[Array, "V"]:
    program = MaskProgram(
        cached=jnp.zeros(1, jnp.int32),
        positions=jnp.arange(row.shape[1], dtype=jnp.int32)[None],
        num_new=size[None],
    )
    hidden = target.forward(params, row, program, None).hidden
    return target.logits(params, hidden[0, size - 1])
