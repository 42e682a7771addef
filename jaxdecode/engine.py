"""Runs one batch: buckets its shapes, prefills in chunks, and drives the compiled loop.

Shapes come from a small set of buckets, so that ragged requests compile nothing new once each
bucket has been seen. The host only looks at finished rows between calls of the loop.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecode.core import loop
from jaxdecode.core.protocols import Method, Target
from jaxdecode.core.types import Canvas, DecodeState, Request, Stats
from jaxdecode.models.config import ModelConfig

# Widths of a prefill chunk: padding costs at most a third, and a sixth of a long prompt.
CHUNKS = (16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512)
# Rows a step may write past a row's end: the longest path of any proposal fits.
SLACK = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """A target with its parameters, and the method that decodes it."""

    config: ModelConfig
    target: Target
    params: Any
    method: Method
    kv_dtype: Any


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Host copy of the rows' decided tokens after some steps.

    Attributes:
        canvas: arrays of `Canvas` as NumPy.
        stats: arrays of `Stats` as NumPy.
        seconds: wall time since the batch began, prefill and compilation included.
    """

    canvas: Canvas
    stats: Stats
    seconds: float

    def new_tokens(self, row: int, start: int) -> np.ndarray:
        """Tokens decided from slot `start` on."""
        return np.asarray(self.canvas.tokens[row, start : int(self.canvas.length[row]) + 1])


def batch_bucket(num_rows: int) -> int:
    """Rows of the compiled program: the next power of two."""
    return 1 << (num_rows - 1).bit_length()


def slot_bucket(num_slots: int) -> int:
    """Slots of the canvas: 128, 192, 256, 384, 512, ...: two sizes per doubling."""
    size = 128
    while size < num_slots:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def chunks(num_tokens: int) -> Iterator[tuple[int, int]]:
    """Start and width of each prefill chunk that covers `num_tokens` tokens."""
    start = 0
    while start < num_tokens:
        left = num_tokens - start
        width = next((c for c in CHUNKS if c >= left), CHUNKS[-1])
        yield start, width
        start += width


def shapes(max_length: int) -> list[tuple[int, int]]:
    """One (prompt length, new tokens) for every set of programs a row of max_length can need."""
    buckets = {slot_bucket(n + SLACK) for n in range(2, max_length + 1)}
    # The longest row of each bucket that is still within max_length.
    ends = sorted({min(bucket - SLACK, max_length) for bucket in buckets})
    found = {}
    for length in range(1, max_length):
        plan = tuple(chunks(length - 1))
        for end in ends:
            if end > length:
                found.setdefault((plan, _slots(plan, end)), (length, end - length))
    return list(found.values())


def _slots(plan: Sequence[tuple[int, int]], end: int) -> int:
    covered = plan[-1][0] + plan[-1][1] if plan else 0
    return slot_bucket(max(covered, end + SLACK))


def run(
    engine: Engine,
    request: Request,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    steps: Iterator[int],
) -> Iterator[Snapshot]:
    """Decodes a batch, yielding a snapshot after each of `steps` many steps until all are done.

    Args:
        engine: what runs.
        request: arrays of the batch's options; its batch size is the bucket.
        prompts: token ids per row; at least one each.
        max_new_tokens: bound per row; also cut at the model's context length.
        steps: steps per call; every new value costs nothing.
    """
    begin = time.perf_counter()
    state = _prefilled(engine, request, prompts, max_new_tokens)
    for num_steps in steps:
        state = loop.run(
            engine.params,
            request,
            state,
            jnp.int32(num_steps),
            target=engine.target,
            method=engine.method,
        )
        canvas, stats = jax.device_get((state.canvas, state.stats))
        yield Snapshot(canvas, stats, time.perf_counter() - begin)
        if canvas.done.all():
            return


def _prefilled(
    engine: Engine, request: Request, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> DecodeState:
    longest = max(map(len, prompts))
    # The last prompt token stays pending: the first step scores it.
    plan = list(chunks(longest - 1))
    end = min(longest + max_new_tokens, engine.config.max_length)
    slots = _slots(plan, end)
    canvas = _canvas(prompts, max_new_tokens, slots, request.key.shape[0], engine.config)
    cache = engine.method.cache.init(
        engine.config,
        len(canvas.length),
        slots,
        engine.kv_dtype,
        stacked=not isinstance(engine.params["layers"], Sequence),
    )
    for start, width in plan:
        rows = loop.prefill(
            engine.params,
            canvas.tokens[:, start : start + width],
            jnp.int32(start),
            np.clip(canvas.length - start, 0, width),
            engine.method.cache.read(cache) if start else None,
            target=engine.target,
        )
        cache = loop.store(cache, rows, jnp.int32(start), cache=engine.method.cache)
    canvas = jax.tree.map(jnp.asarray, canvas)
    names = [field.name for field in dataclasses.fields(Stats)]
    stats = Stats(**{name: jnp.asarray(np.zeros_like(canvas.length)) for name in names})
    return DecodeState(
        canvas=canvas,
        cache=cache,
        drafter=engine.method.drafter.init(engine.params, request, canvas),
        stats=stats,
        step=jnp.int32(0),
    )


def _canvas(
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    slots: int,
    batch: int,
    config: ModelConfig,
) -> Canvas:
    """The canvas before the first step, in NumPy. Padding rows are done from the start."""
    lengths = np.ones(batch, np.int32)
    lengths[: len(prompts)] = [len(prompt) for prompt in prompts]
    tokens = np.zeros((batch, slots), np.int32)
    for b, prompt in enumerate(prompts):
        tokens[b, : len(prompt)] = prompt
    host: dict[str, Any] = dict(
        tokens=tokens,
        open=np.arange(slots)[None] >= lengths[:, None],
        length=lengths - 1,
        end=np.minimum(lengths + max_new_tokens, config.max_length).astype(np.int32),
        done=np.arange(batch) >= len(prompts),
        finish=np.zeros(batch, np.int32),
        stop_state=np.zeros(batch, np.int32),
        commit_step=np.full((batch, slots), -1, np.int32),
        logprob=np.zeros((batch, slots), np.float32),
    )
    return Canvas(**host)
