"""The compiled loop on a model whose exact law is known: samples, and the test of their law.

Thousands of rows with the same prompt and different keys run as one batch of the real loop; what
they emitted is counted and held against the exact law with a chi-square test.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from jaxdecode import api, resolve
from jaxdecode.core import loop, prefill
from jaxdecode.core.protocols import DraftWeights, Method, Model, Models, Weights
from jaxdecode.core.types import Canvas, DecodeState, Request, Sampling, Stats
from jaxdecode.evals import toys

# The prompt repeats itself, so that drafters which copy have something to copy.
PROMPT = (0, 1, 2, 3, 4, 0, 1, 3, 2, 0, 1)
TEMPERATURE = 0.9
NUM_NEW = 4
ROWS = 4096
# Cells of the law that fewer samples than this are expected in are counted as one.
MIN_EXPECTED = 10.0
_COUNTERS = [field.name for field in dataclasses.fields(Stats)]


class Setup(NamedTuple):
    """A method on toy models, ready to run."""

    method: Method
    weights: Weights
    model: Model


class Counts(NamedTuple):
    """What was emitted.

    Attributes:
        cells: how often each continuation was emitted: one axis per token.
        accepted: draft tokens accepted per step.
    """

    cells: np.ndarray
    accepted: float


def setup(
    choice: resolve.Choice, lm: api.LanguageModel, draft: api.LanguageModel | None = None
) -> Setup:
    """The method of a choice on a toy target with, where it needs them, a toy draft and heads."""
    if "draft" not in choice.entry.needs:
        draft = None
    kind = choice.entry.heads
    heads = None if kind is None else toys.heads(kind, lm)
    models = Models(lm.bound, draft and draft.bound, heads and heads.spec)
    own = None if draft is None else DraftWeights(draft.params)
    method, weights = resolve.weights_of(choice, models, lm.params, own, heads and heads.params)
    if method.drafter.price is not None:
        # At equal prices as much is drafted as can be.
        weights = method.drafter.price(weights, np.ones(len(method.drafter.widths)))
    return Setup(method, weights, models.target._replace(cache=method.cache))


def whole(samples: int) -> int:
    """Rows that are decoded when at least `samples` are asked for: whole batches."""
    return -(-samples // ROWS) * ROWS


def counts(
    ready: Setup,
    samples: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> Counts:
    """How often each continuation of NUM_NEW tokens was emitted: one axis per token.

    Args:
        ready: the method.
        samples: at least so many rows are decoded.
        progress: called with the number of rows decoded since the last call.
    """
    size = ready.model.config.vocab_size
    host = _canvas(ready, ROWS)
    cells, accepted, steps = np.zeros(size**NUM_NEW, np.int64), 0, 0
    for batch in range(whole(samples) // ROWS):
        keys = np.random.default_rng(batch).integers(0, 2**32, (ROWS, 2), np.uint32)
        more, stats = jax.device_get(_run(ready, host, jnp.asarray(keys)))
        cells += more
        accepted, steps = accepted + int(stats.num_accepted.sum()), steps + int(stats.nfe.sum())
        if progress is not None:
            progress(ROWS)
    return Counts(cells.reshape((size,) * NUM_NEW), accepted / steps)


def _canvas(ready: Setup, rows: int) -> Canvas:
    """The canvas before the first step: equal rows, on the host."""
    end = len(PROMPT) + NUM_NEW
    drafter = ready.method.drafter
    # Prompts are cached in chunks, which must fit.
    slots = max(32 if drafter.prefilled else 0, end + drafter.max_depth + 1)

    def full(value: int, dtype: Any = np.int32) -> np.ndarray:
        return np.full(rows, value, dtype)

    filled = np.pad(np.asarray(PROMPT, np.int32), (0, slots - len(PROMPT)))
    host: dict[str, Any] = dict(
        tokens=np.tile(filled, (rows, 1)),
        open=np.tile(np.arange(slots) >= len(PROMPT), (rows, 1)),
        length=full(len(PROMPT) - 1),
        end=full(end),
        done=full(False, bool),
        finish=full(0),
        stop_state=full(0),
        commit_step=np.full((rows, slots), -1, np.int32),
        logprob=np.zeros((rows, slots), np.float32),
    )
    return Canvas(**host)


def _run(ready: Setup, host: Canvas, keys: UInt32[Array, "B 2"]):
    """Counts of each continuation, and the counters, of one batch."""
    method, weights = ready.method, ready.weights
    rows = keys.shape[0]
    request = Request(
        key=keys,
        sampling=Sampling(temperature=jnp.full(rows, TEMPERATURE, jnp.float32)),
        stop_tokens=jnp.full(1, -1, jnp.int32),
    )
    cache, drafter = prefill.start(weights, ready.model, method.drafter, request, host)
    state = DecodeState(
        canvas=jax.tree.map(jnp.asarray, host),
        cache=cache,
        drafter=drafter,
        # Three buffers, because they are donated.
        stats=Stats(**{name: jnp.zeros(rows, jnp.int32) for name in _COUNTERS}),
        step=jnp.int32(0),
    )
    # Every step decides something; more steps are for methods that take something back.
    steps = jnp.int32(4 * NUM_NEW)
    end = loop.run(weights, request, state, steps, target=ready.model.target, method=method)
    tokens = end.canvas.tokens
    if method.commit is not None and method.drafter.outputs is not None:
        # Slots in the order in which tokens came: the text is the drafter's.
        tokens = method.drafter.outputs(end.drafter).tokens[:, 0]
    return _cells(tokens, size=ready.model.config.vocab_size), end.stats


@functools.partial(jax.jit, static_argnames="size")
def _cells(tokens: Int[Array, "B L"], *, size: int) -> Int[Array, "cells"]:
    new = jax.lax.slice_in_dim(tokens, len(PROMPT), len(PROMPT) + NUM_NEW, axis=1)
    place = size ** jnp.arange(NUM_NEW - 1, -1, -1, dtype=jnp.int32)
    return jnp.zeros(size**NUM_NEW, jnp.int32).at[(new * place).sum(1)].add(1)


def chi_square(found: np.ndarray, law: np.ndarray) -> float:
    """Probability of counts at least as far from the law as these, if the law is true."""
    total = found.sum()
    expected = (law / law.sum() * total).ravel()
    found = found.ravel()
    small = expected < MIN_EXPECTED
    if (found[expected == 0] > 0).any():
        return 0.0
    expected = np.append(expected[~small], expected[small].sum())
    found = np.append(found[~small], found[small].sum())
    kept = expected > 0
    statistic = float((((found - expected) ** 2)[kept] / expected[kept]).sum())
    freedom = int(kept.sum()) - 1
    return float(jax.scipy.special.gammaincc(freedom / 2, statistic / 2))


def total_variation(found: np.ndarray, law: np.ndarray) -> float:
    """Half the summed distance of two laws; counts are normalised."""
    return 0.5 * float(np.abs(found / found.sum() - law / law.sum()).sum())


def noise_floor(found: np.ndarray, law: np.ndarray) -> float:
    """Total variation that as many samples of the law itself show on average."""
    return float(np.sqrt(law * (1 - law) / (2 * np.pi * found.sum())).sum())
