"""A batch that does not empty: rows that wait take the places of finished ones.

The compiled loop stops as soon as a few rows are done. Their places go to new rows, which are
prefilled in a small batch of their own and moved into the running one. All shapes are fixed while
rows of one size class are decoded: the batch, the small batch and the slots.

A row is what it is alone: its noise, its counters and its drafter's state are its own. What a
drafter may carry from batch to batch (L0 only) passes from the rows before to those that come in.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecode import costs
from jaxdecode import engine as engines
from jaxdecode.core import loop, prefill, rows
from jaxdecode.core.types import DecodeState, Request
from jaxdecode.dist import place
from jaxdecode.engine import Engine, Snapshot

# Steps per call of the loop in which nobody finishes; then Ctrl-C is heard.
_STEPS = np.int32(64)
# Rows that are prefilled together, as a share of the batch: on accelerators more of them cost no
# more than one, and so long as they wait for each other their places are idle.
_SHARE = 8
# Rows of other sizes may overtake one by so many times the look-ahead.
_PATIENCE = 4


class Row(NamedTuple):
    """A row to decode.

    Attributes:
        name: whatever the caller knows it by.
        tokens: its prompt.
        key: its noise, `[2]`.
    """

    name: Any
    tokens: np.ndarray
    key: np.ndarray


class Ahead:
    """Rows that were read and wait, sorted by the slots they need; at most `size` of them."""

    def __init__(self, source: Iterator[Row], size: int, slots: Callable[[Row], int]):
        self._source, self._size, self._slots = source, size, slots
        self._waiting: dict[int, list[tuple[int, Row]]] = {}
        self._num_read = self._num_waiting = 0

    def fill(self) -> None:
        """Reads rows until enough wait, or there are no more."""
        while self._num_waiting < self._size:
            row = next(self._source, None)
            if row is None:
                return
            self._waiting.setdefault(self._slots(row), []).append((self._num_read, row))
            self._num_read += 1
            self._num_waiting += 1

    def choose(self) -> int | None:
        """The slots that most rows need, or the row that has waited too long; None at the end."""
        self.fill()
        if not self._waiting:
            return None
        if self._overdue():
            return self._oldest()
        return max(self._waiting, key=lambda slots: len(self._waiting[slots]))

    def take(self, slots: int, num: int) -> list[Row]:
        """Up to `num` rows of like length that need so many slots, the first of them foremost."""
        waiting = self._waiting.get(slots, [])
        if not waiting or (self._overdue() and slots != self._oldest()):
            return []
        length = len(waiting[0][1].tokens)
        near = sorted(waiting, key=lambda entry: abs(len(entry[1].tokens) - length))[:num]
        taken = {order for order, _ in near}
        self._waiting[slots] = [entry for entry in waiting if entry[0] not in taken]
        if not self._waiting[slots]:
            del self._waiting[slots]
        self._num_waiting -= len(near)
        return [row for _, row in near]

    def _oldest(self) -> int:
        return min(self._waiting, key=lambda slots: self._waiting[slots][0][0])

    def _overdue(self) -> bool:
        return self._num_read - self._waiting[self._oldest()][0][0] > _PATIENCE * self._size


def few(batch: int) -> int:
    """Rows that are prefilled together for a batch of this size."""
    return max(batch // _SHARE, 1)


def shared_state(engine: Engine, request_of: Callable[[int], Request]) -> bool:
    """Whether the rows of a batch share something in the state of a drafter that learns."""
    if engine.method.drafter.remember is None:
        return False
    large, small = (_drafter_shapes(engine, request_of(batch), batch) for batch in (3, 2))
    return any(axis < 0 for axis in jax.tree.leaves(jax.tree.map(rows.axis, large, small)))


def _drafter_shapes(engine: Engine, request: Request, batch: int) -> Any:
    model = engine.model._replace(cache=engine.method.cache)
    canvas = engines.blank(engine, batch, engines.slot_bucket(1))

    def init(weights: Any, request: Request, canvas: Any) -> Any:
        cache = prefill.empty(weights.target, model, batch, canvas.tokens.shape[1])
        view = model.cache.read(cache)
        return engine.method.drafter.init(weights, request, canvas, view, engine.memory)

    return jax.eval_shape(init, engine.weights, request, canvas)


def run(
    engine: Engine,
    source: Iterator[Row],
    *,
    request_of: Callable[[int], Request],
    max_new_tokens: int,
    batch_size: int,
    look_ahead: int,
) -> Iterator[tuple[Row, Snapshot]]:
    """Decodes rows as they come, and yields each with its own snapshot as it ends.

    Args:
        engine: what runs, on one device; its rows share no state (`shared_state`).
        source: the rows; read as they are needed.
        request_of: arrays of the options for a batch of so many rows; the keys do not matter.
        max_new_tokens: bound per row; also cut at the model's context length.
        batch_size: rows decoded at once, at least 2.
        look_ahead: rows that are read ahead, so that those of like length run together.
    """

    def slots_of(row: Row) -> int:
        prompt: Any = row.tokens
        return engines.slots_of(engine, [prompt], max_new_tokens)

    ahead = Ahead(source, look_ahead, slots_of)
    batch = engines.batch_bucket(batch_size)
    requests = request_of(batch), request_of(few(batch))
    while (slots := ahead.choose()) is not None:
        costs.with_prices(engine, requests[0], slots)
        running = _Running(engine, requests, slots, batch_size, max_new_tokens)
        yield from running.decode(ahead)


def warm(
    engine: Engine,
    *,
    request_of: Callable[[int], Request],
    lengths: Iterable[int],
    max_new_tokens: int,
    batch_size: int,
) -> None:
    """Compiles what `run` needs for prompts of these lengths: decodes a token of each kind.

    Args:
        engine: as for `run`; what its drafter remembers afterwards means nothing.
        request_of: as for `run`.
        lengths: tokens of the prompts that will come.
        max_new_tokens: as for `run`.
        batch_size: as for `run`.
    """
    batch = engines.batch_bucket(batch_size)
    requests = request_of(batch), request_of(few(batch))
    remember = engine.method.drafter.remember
    pairs = [(length, max_new_tokens) for length in lengths]
    for slots, prompts in _by_slots(engine, pairs).items():
        costs.with_prices(engine, requests[0], slots)
        engine.memory = None
        # With and without something to remember. The first prompt again: into a batch that ran.
        for _ in range(1 if remember is None else 2):
            running = _Running(engine, requests, slots, batch_size, max_new_tokens=1)
            for prompt in [*prompts, prompts[0]]:
                running.decode_one(Row(None, prompt, np.zeros(2, np.uint32)))
            if remember is not None:
                engine.memory = remember(running.state.drafter)


def _by_slots(engine: Engine, pairs: Sequence[tuple[int, int]]) -> dict[int, list[np.ndarray]]:
    """A prompt for every way to prefill rows of these lengths, by the slots of their canvas."""
    found: dict[int, list[np.ndarray]] = {}
    for length, new in engines.distinct(pairs, engine.model.config.max_length, engine.slack):
        prompt: Any = np.zeros(length, np.int32)
        found.setdefault(engines.slots_of(engine, [prompt], new), []).append(prompt)
    return found


class _Running:
    """A batch under way whose canvas has a given number of slots."""

    def __init__(
        self,
        engine: Engine,
        requests: tuple[Request, Request],
        slots: int,
        batch_size: int,
        max_new_tokens: int,
    ):
        self.engine, self.slots, self.max_new_tokens = engine, slots, max_new_tokens
        self.request, self.small = requests
        self.state = engines.prefilled(engine, self.request, [], max_new_tokens, slots)
        self.keys = np.array(self.request.key)
        self.free = list(range(batch_size))
        self.members: dict[int, tuple[Row, float]] = {}

    def decode(self, ahead: Ahead) -> Iterator[tuple[Row, Snapshot]]:
        """Decodes all rows that need so many slots and wait, or come to."""
        finished: list[tuple[Row, Snapshot]] = []
        num_small = len(self.small.key)
        while True:
            while self.free and (new := ahead.take(self.slots, min(num_small, len(self.free)))):
                self._insert(new)
            if self.members:
                self._start()
            # While the device works: what the caller does with results, and reading on.
            yield from finished
            if not self.members:
                return
            ahead.fill()
            finished = self._finished()

    def decode_one(self, row: Row) -> None:
        """Decodes this row alone, for no result."""
        self._insert([row])
        while self.members:
            self._start()
            self._finished()

    def _insert(self, new: list[Row]) -> None:
        """Prefills rows and moves them to free places."""
        engine, begin = self.engine, time.perf_counter()
        if engine.method.drafter.remember is not None and self.members:
            engine.memory = engine.method.drafter.remember(self.state.drafter)
        keys, places = np.zeros(self.small.key.shape, np.uint32), np.zeros(len(self.small.key), int)
        for i, row in enumerate(new):
            slot = self.free.pop()
            keys[i] = self.keys[slot] = row.key
            places[i], self.members[slot] = slot, (row, begin)
        request = dataclasses.replace(self.small, key=jnp.asarray(keys))
        prompts: Any = [row.tokens for row in new]
        fresh = engines.prefilled(engine, request, prompts, self.max_new_tokens, self.slots)
        by_row = [dataclasses.replace(state, step=()) for state in (self.state, fresh)]
        inserted = rows.insert(*by_row, places.astype(np.int32), np.int32(len(new)))
        # Each row counts its own steps. Those of the loop begin again, or would overflow one day.
        self.state = dataclasses.replace(inserted, step=fresh.step)

    def _start(self) -> None:
        """Sets the loop going until as many rows are done as are prefilled together."""
        num_new = min(len(self.small.key), len(self.members))
        # A copy: on CPU the device would read the host's own array, which goes on changing.
        request = dataclasses.replace(self.request, key=jnp.array(self.keys))
        self.state: DecodeState = loop.run(
            self.engine.weights,
            request,
            self.state,
            _STEPS,
            target=self.engine.model.target,
            method=self.engine.method,
            enough=np.int32(len(self.keys) - len(self.members) + num_new),
        )

    def _finished(self) -> list[tuple[Row, Snapshot]]:
        """Waits for the loop, and empties the places of rows that are done."""
        canvas, stats = place.fetch((self.state.canvas, self.state.stats))
        done = [slot for slot in self.members if canvas.done[slot]]
        outputs = self.engine.method.drafter.outputs
        texts = None
        if done and outputs is not None:
            texts = place.fetch(outputs(self.state.drafter))
        whole, now, found = Snapshot(canvas, stats, 0.0, texts), time.perf_counter(), []
        for slot in done:
            row, begin = self.members.pop(slot)
            found.append((row, whole.row(slot, now - begin)))
            self.free.append(slot)
        return found
