"""Runs one batch: buckets its shapes, prefills in chunks, and drives the compiled loop.

Shapes come from a small set of buckets, so that ragged requests compile nothing new once each
bucket has been seen. The host only looks at finished rows between calls of the loop.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdecode.core import loop, prefill
from jaxdecode.core.protocols import Method, Model, Weights
from jaxdecode.core.record import Record
from jaxdecode.core.types import Canvas, DecodeState, Outputs, Request, Stats
from jaxdecode.dist import place, rules
from jaxdecode.models.config import ModelConfig
from jaxdecode.template import Template, start_of

# Sees every step: its record and the canvas after it, as NumPy.
Watch = Callable[[Record, Canvas], None]
# Rows a step may write past a row's end: paths of up to so many nodes fit without another bucket.
SLACK = 16


@dataclasses.dataclass(kw_only=True)
class Engine:
    """A target, the method that decodes it, and the parameters of both.

    Attributes:
        model: the target.
        method: seats of the loop.
        weights: parameters of target, drafter and verifier.
        memory: what the drafter remembers of earlier batches; replaced after every batch.
    """

    model: Model
    method: Method
    weights: Weights
    memory: Any = None

    @property
    def slack(self) -> int:
        """Slots past a row's end that a step may write."""
        return max(SLACK, self.method.drafter.max_depth + 1)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Host copy of the rows' decided tokens after some steps.

    Attributes:
        canvas: arrays of `Canvas` as NumPy.
        stats: arrays of `Stats` as NumPy.
        seconds: wall time since the batch began, prefill and compilation included.
        outputs: once all rows are done: the texts of a method that writes several per row.
    """

    canvas: Canvas
    stats: Stats
    seconds: float
    outputs: Outputs | None = None

    def row(self, row: int, seconds: float) -> "Snapshot":
        """That of one row, which took so long."""
        parts = (self.canvas, self.stats, self.outputs)
        canvas, stats, outputs = jax.tree.map(lambda leaf: leaf[row : row + 1], parts)
        return Snapshot(canvas, stats, seconds, outputs)

    def new_tokens(self, row: int, start: int) -> np.ndarray:
        """Tokens decided from slot `start` on."""
        return np.asarray(self.canvas.tokens[row, start : int(self.canvas.length[row]) + 1])


def batch_bucket(num_rows: int, mesh: Mesh | None = None) -> int:
    """Rows of the compiled program: the next power of two that splits over the mesh."""
    parts = 1 if mesh is None else mesh.shape[rules.RULES["rows"]]
    return parts << (-(-num_rows // parts) - 1).bit_length()


def slot_bucket(num_slots: int) -> int:
    """Slots of the canvas: 128, 192, 256, 384, 512, ...: two sizes per doubling, eight from 2048.

    Where a cache is long, what it is too long by costs more memory than a program more costs time.
    """
    if num_slots > 2048:
        step = 1 << ((num_slots - 1).bit_length() - 4)
        return -(-num_slots // step) * step
    size = 128
    while size < num_slots:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def shapes(max_length: int, slack: int = SLACK) -> list[tuple[int, int]]:
    """One (prompt length, new tokens) for every set of programs a row of max_length can need."""
    buckets = {slot_bucket(n + slack) for n in range(2, max_length + 1)}
    # The longest row of each bucket that is still within max_length.
    ends = sorted({min(bucket - slack, max_length) for bucket in buckets})
    found = {}
    for length in range(1, max_length):
        plan = tuple(prefill.chunks(length - 1))
        for end in ends:
            if end > length:
                found.setdefault((plan, _slots(plan, end + slack)), (length, end - length))
    return list(found.values())


def distinct(
    requests: Sequence[tuple[int, int]], max_length: int, slack: int = SLACK
) -> list[tuple[int, int]]:
    """Those of the (prompt length, new tokens) pairs that need programs of their own."""
    found = {}
    for length, new in requests:
        plan = tuple(prefill.chunks(length - 1))
        slots = _slots(plan, min(length + new, max_length) + slack)
        found.setdefault((plan, slots), (length, new))
    return list(found.values())


def slots_of(engine: Engine, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """Slots of the canvas for these prompts."""
    longest = max(map(len, prompts))
    # The last prompt token stays pending: the first step scores it.
    plan = list(prefill.chunks(longest - 1))
    end = min(longest + max_new_tokens, engine.model.config.max_length)
    return _slots(plan, end + engine.slack)


def _slots(plan: Sequence[tuple[int, int]], end: int) -> int:
    covered = plan[-1][0] + plan[-1][1] if plan else 0
    return slot_bucket(max(covered, end))


def run(
    engine: Engine,
    request: Request,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    steps: Iterator[int],
    watch: Watch | None = None,
    slots: int | None = None,
) -> Iterator[Snapshot]:
    """Decodes a batch, yielding a snapshot after each of `steps` many steps until all are done.

    Args:
        engine: what runs.
        request: arrays of the batch's options; its batch size is the bucket.
        prompts: token ids per row; at least one each.
        max_new_tokens: bound per row; also cut at the model's context length.
        steps: steps per call; every new value costs nothing.
        watch: sees the record of every step. The host then takes one step at a time, whatever
            `steps` says, which is slower.
        slots: of the canvas; without them, as many as the prompts need.
    """
    parts: Any = {"target": engine.model.target, "method": engine.method}
    begin = time.perf_counter()
    request = place.rows(request, engine.model.mesh, request.key.shape[0])
    state = prefilled(engine, request, prompts, max_new_tokens, slots)
    for num_steps in steps:
        record = None
        if watch is None:
            state = loop.run(engine.weights, request, state, np.int32(num_steps), **parts)
        else:
            state, record = loop.run_recorded(engine.weights, request, state, **parts)
        canvas, stats, record = place.fetch((state.canvas, state.stats, record))
        if watch is not None:
            watch(record, canvas)
        if canvas.done.all():
            outputs = _end(engine, state)
            yield Snapshot(canvas, stats, time.perf_counter() - begin, outputs)
            return
        yield Snapshot(canvas, stats, time.perf_counter() - begin)


def _end(engine: Engine, state: DecodeState) -> Any:
    """Keeps what the drafter remembers; returns what it has to say of the batch."""
    drafter = engine.method.drafter
    if drafter.remember is not None:
        engine.memory = drafter.remember(state.drafter)
    return None if drafter.outputs is None else place.fetch(drafter.outputs(state.drafter))


def prefilled(
    engine: Engine,
    request: Request,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    slots: int | None = None,
) -> DecodeState:
    """The state before the first step: prompts in the canvas, their keys and values cached.

    Without `slots`, the canvas is as long as the prompts need.
    """
    model, method, weights = engine.model, engine.method, engine.weights
    slots = slots or slots_of(engine, prompts, max_new_tokens)
    host = host_canvas(prompts, max_new_tokens, slots, request.key.shape[0], model.config)
    batch = len(host.length)
    kept = model._replace(cache=method.cache)
    cache, drafter = prefill.start(weights, kept, method.drafter, request, host, engine.memory)
    names = [field.name for field in dataclasses.fields(Stats)]
    # An array each: what is donated must not be shared.
    zeros: dict[str, Any] = {name: np.zeros_like(host.length) for name in names}
    counters = Stats(**zeros)
    canvas, stats, step = jax.device_put((host, counters, np.int32(0)))
    rest = place.rows((canvas, drafter, stats, step), model.mesh, batch)
    canvas, drafter, stats, step = rest
    return DecodeState(canvas=canvas, cache=cache, drafter=drafter, stats=stats, step=step)


def blank(engine: Engine, batch: int, slots: int) -> Canvas:
    """A canvas without rows, in NumPy."""
    return host_canvas([], 1, slots, batch, engine.model.config)


def host_canvas(
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    slots: int,
    batch: int,
    config: ModelConfig,
) -> Canvas:
    """The canvas before the first step, in NumPy. Padding rows are done from the start."""
    starts, ends = np.ones(batch, np.int32), np.full(batch, 1 + max_new_tokens, np.int32)
    tokens, is_open = np.zeros((batch, slots), np.int32), np.ones((batch, slots), bool)
    is_open[:, 0] = False
    for b, prompt in enumerate(prompts):
        given = np.asarray(prompt) >= 0
        is_open[b, : len(prompt)] = ~given
        tokens[b, : len(prompt)] = np.where(given, prompt, 0)
        starts[b] = start_of(prompt)
        ends[b] = len(prompt) if isinstance(prompt, Template) else len(prompt) + max_new_tokens
    host: dict[str, Any] = dict(
        tokens=tokens,
        open=is_open,
        length=starts - 1,
        end=np.minimum(ends, config.max_length).astype(np.int32),
        done=np.arange(batch) >= len(prompts),
        finish=np.zeros(batch, np.int32),
        stop_state=np.zeros(batch, np.int32),
        commit_step=np.full((batch, slots), -1, np.int32),
        logprob=np.zeros((batch, slots), np.float32),
    )
    return Canvas(**host)
