"""From JSONL to packed batches: shuffled, shared among processes, resumable at any batch.

Every epoch is packed anew: its texts in a random order, each into the fullest row that still has
room. Batches follow each other through the rows of all epochs, and process p of P takes the p-th of
P equal parts of each. So what is trained on in a step depends on the seed and on the rows of all
processes together, but not on how many processes share them; and the place in it is two numbers.

Texts are held in memory as tokens: five bytes per token, on every host.
"""

import bisect
import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from jaxdecode import checks
from jaxdecode.convert.tokenizer import Tokenizer
from jaxdecode.errors import InputError
from jaxdecode.training.objective import Batch, Texts
from jaxdecode.training.texts import Text, read_texts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Settings.

    Attributes:
        train: JSONL file of texts to train on (`training/texts.py` says what a line may be); or a
            .txt file, which is cut into rows.
        held_out: likewise, of texts that what is trained is measured on; None for no measurement.
        max_length: tokens of a row; longer texts are cut.
        pack: several texts may share a row.
    """

    train: str
    held_out: str | None = None
    max_length: int = 512
    pack: bool = True

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("data.max_length", self.max_length, low=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What was read.

    Attributes:
        num_texts: texts to train on.
        num_tokens: their tokens.
        num_counted: tokens among them that are learned.
        num_cut: texts that were longer than a row.
        num_dropped: texts of which nothing to learn was left within a row.
        num_shared: held-out prompts that are also trained on.
    """

    num_texts: int
    num_tokens: int
    num_counted: int
    num_cut: int
    num_dropped: int
    num_shared: int


class Loader:
    """Batches without end, of fixed shape, and the place in them.

    Attributes:
        counts: what was read.
        held_out: texts to measure on.
    """

    def __init__(self, batches: "_Batches", counts: Counts, held_out: Sequence[Text]):
        self.counts = counts
        self.held_out = held_out
        self._batches = batches
        self._iterator = iter(batches)
        self._digest = batches.digest()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def learn(
        self,
        features: Callable[[Batch], Any],
        told: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Computes features of all texts once; the batches from here on bring them along.

        Args:
            features: of a batch, a tree of `[B, T, ...]` arrays.
            told: called with the number of batches that are done and of all, from 0 on.
        """
        here = self._batches
        texts, width = list(here.texts), here.config.max_length
        parts = list(self._parts())
        for done, part in enumerate(parts):
            told(done, len(parts))
            rows = [[texts[i] for i in row] for row in part]
            found = jax.tree.map(np.asarray, features(to_batch(rows, width)))
            for b, row in enumerate(part):
                start = 0
                for i in row:
                    place = slice(start, start + len(texts[i].tokens))
                    own = jax.tree.map(lambda x, b=b, place=place: x[b, place].copy(), found)
                    texts[i] = texts[i]._replace(features=own)
                    start = place.stop
        told(len(parts), len(parts))
        here.texts = texts

    def texts(self, vocab_size: int) -> Texts:
        """All that is trained on, by any process."""
        here = self._batches
        learned = np.concatenate([text.tokens[text.counts] for text in here.texts])
        return Texts(np.bincount(learned, minlength=vocab_size), self._once)

    def _once(self) -> Iterator[Batch]:
        here = self._batches
        for part in self._parts():
            yield to_batch([[here.texts[i] for i in row] for row in part], here.config.max_length)

    def _parts(self) -> Iterator[list[list[int]]]:
        """The texts of every row, batch by batch; the last is filled up: all have one shape."""
        here = self._batches
        rows = pack([len(text.tokens) for text in here.texts], here.config.max_length)
        rows += [[]] * (-len(rows) % here.batch_size)
        for first in range(0, len(rows), here.batch_size):
            yield rows[first : first + here.batch_size]

    @property
    def epoch(self) -> int:
        """The epoch that the next batch begins in, from 0."""
        return self._iterator.get_state()["epoch"]

    def state(self) -> bytes:
        """The place in the data: the same on all processes."""
        return json.dumps(self._iterator.get_state() | {"data": self._digest}).encode()

    def restore(self, state: bytes) -> None:
        """Goes to a place; the batches from there on are those that would have come.

        Raises:
            InputError: it is a place in other data.
        """
        found = json.loads(state)
        if found.pop("data") != self._digest:
            raise InputError(
                "the saved place belongs to other data: files, seed, max_length, pack and the rows "
                "of a step must be as they were; restore them, or start a new run."
            )
        self._iterator.set_state(found)


def open_data(
    config: Data,
    *,
    tokenizer: Tokenizer | None,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    num_processes: int = 1,
    vocab_size: int | None = None,
) -> Loader:
    """Reads the files and packs them; warns of texts that are cut and of prompts that leak.

    Args:
        config: settings.
        tokenizer: the target's; None allows only lines with tokens.
        batch_size: rows of a batch of this process.
        seed: decides the order.
        process_index: which of the processes this is.
        num_processes: processes that train together, with as many rows each.
        vocab_size: the target's; token ids are checked against it.

    Raises:
        InputError: a file or a line of it cannot be used.
    """
    checks.integer("batch_size", batch_size, low=1)
    checks.integer("seed", seed, low=0, high=2**32 - 1)
    checks.integer("process_index", process_index, low=0, high=num_processes - 1)
    source: dict[str, Any] = {"tokenizer": tokenizer, "vocab_size": vocab_size}
    source["width"] = config.max_length
    found = read_texts(config.train, option="data.train", **source)
    cut = [text._replace(**_first(text, config.max_length)) for text in found]
    kept = [text for text in cut if text.counts.any()]
    held_out = []
    if config.held_out is not None:
        held_out = read_texts(config.held_out, option="data.held_out", **source)
    prompts = {tuple(text.prompt) for text in found}
    counts = Counts(
        num_texts=len(kept),
        num_tokens=sum(len(text.tokens) for text in kept),
        num_counted=sum(int(text.counts.sum()) for text in kept),
        num_cut=sum(len(text.tokens) > config.max_length for text in found),
        num_dropped=len(found) - len(kept),
        num_shared=sum(tuple(text.prompt) in prompts for text in held_out),
    )
    _warn(config, counts, len(held_out))
    batches = _Batches(
        kept, config, seed, batch_size=batch_size, part=(process_index, num_processes)
    )
    return Loader(batches, counts, held_out)


def _first(text: Text, num_tokens: int) -> dict[str, np.ndarray]:
    return {name: getattr(text, name)[:num_tokens] for name in ("tokens", "counts")}


def _warn(config: Data, counts: Counts, num_held_out: int) -> None:
    if not counts.num_texts:
        raise InputError(
            f"data.train {config.train}: no text has anything to learn within its first "
            f"{config.max_length} tokens; raise data.max_length."
        )
    if counts.num_cut:
        warnings.warn(
            f"data.train {config.train}: {counts.num_cut} texts are longer than "
            f"data.max_length={config.max_length} tokens and were cut there; "
            f"{counts.num_dropped} had no answer left and were dropped.",
            stacklevel=3,
        )
    if counts.num_shared:
        warnings.warn(
            f"{counts.num_shared} of {num_held_out} prompts of data.held_out {config.held_out} are "
            "also trained on: what is measured on them says little of other prompts.",
            stacklevel=3,
        )


def pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Which texts share a row: each goes, in turn, where the least room is left that holds it.

    Args:
        lengths: tokens of each text, at most `width`.
        width: tokens of a row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for i, length in enumerate(lengths):
        place = bisect.bisect_left(room, (length, 0))
        left, row = room.pop(place) if place < len(room) else (width, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        # A row without room for two tokens takes nothing more.
        if left - length >= 2:
            bisect.insort(room, (left - length, row))
    return rows


def to_batch(rows: Sequence[Sequence[Text]], width: int) -> Batch:
    """One batch of rows of texts; no row may be longer than `width`."""
    shape = (len(rows), width)
    tokens, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    weight = np.zeros(shape, np.float32)
    for b, row in enumerate(rows):
        start = 0
        for number, text in enumerate(row, 1):
            place = slice(start, start + len(text.tokens))
            tokens[b, place], weight[b, place] = text.tokens, text.counts
            positions[b, place] = np.arange(len(text.tokens))
            segments[b, place] = number
            start = place.stop
    arrays: dict[str, Any] = dict(
        tokens=tokens, positions=positions, segments=segments, weight=weight
    )
    return Batch(**arrays, features=_features(rows, width))


def _features(rows: Sequence[Sequence[Text]], width: int) -> Any:
    """The texts' features side by side, zeros behind them; None if they have none."""
    known = [text.features for row in rows for text in row]
    if not known or known[0] is None:
        return None

    def place(*parts: np.ndarray) -> np.ndarray:
        out = np.zeros((len(rows), width, *parts[0].shape[1:]), parts[0].dtype)
        given = iter(parts)
        for b, row in enumerate(rows):
            start = 0
            for text in row:
                out[b, start : start + len(text.tokens)] = next(given)
                start += len(text.tokens)
        return out

    return jax.tree.map(place, *known)


class _Batches(grain.IterDataset):
    """The batches of one process, through all epochs."""

    def __init__(
        self,
        texts: Sequence[Text],
        config: Data,
        seed: int,
        *,
        batch_size: int,
        part: tuple[int, int],
    ):
        super().__init__()
        self.texts, self.config = texts, config
        self.batch_size, self.part = batch_size, part
        self._seed = seed
        self._order: Any = grain.MapDataset.range(len(texts)).shuffle(seed=seed)

    def __iter__(self) -> "_BatchIterator":
        return _BatchIterator(self)

    def rows(self, epoch: int) -> list[list[int]]:
        """The texts of every row of an epoch."""
        num = len(self.texts)
        order = [self._order[epoch * num + i] % num for i in range(num)]
        if not self.config.pack:
            return [[i] for i in order]
        lengths = [len(self.texts[i].tokens) for i in order]
        return [[order[i] for i in row] for row in pack(lengths, self.config.max_length)]

    def digest(self) -> str:
        """What the order of the data depends on."""
        found = hashlib.sha256()
        for text in self.texts:
            found.update(text.tokens.tobytes() + text.counts.tobytes())
            found.update(len(text.tokens).to_bytes(8))
        step = self.batch_size * self.part[1]
        found.update(
            json.dumps([self.config.max_length, self.config.pack, self._seed, step]).encode()
        )
        return found.hexdigest()


class _BatchIterator(grain.DatasetIterator):
    """A place in the rows of an epoch; what lies before it has been seen by one process or another.

    A batch that begins at the end of an epoch goes on in the next.
    """

    def __init__(self, dataset: _Batches):
        super().__init__()
        self._dataset = dataset
        self._epoch, self._row = 0, 0
        self._rows: list[list[int]] | None = None

    def __next__(self) -> Batch:
        here, size = self._dataset, self._dataset.batch_size
        index, num_parts = here.part
        step = [self._next_row() for _ in range(size * num_parts)]
        own = step[index * size : (index + 1) * size]
        return to_batch([[here.texts[i] for i in row] for row in own], here.config.max_length)

    def _next_row(self) -> list[int]:
        if self._rows is None:
            self._rows = self._dataset.rows(self._epoch)
        row = self._rows[self._row]
        self._row += 1
        if self._row == len(self._rows):
            self._epoch, self._row, self._rows = self._epoch + 1, 0, None
        return row

    def get_state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "row": self._row}

    def set_state(self, state: dict[str, Any]) -> None:
        self._epoch, self._row, self._rows = state["epoch"], state["row"], None
