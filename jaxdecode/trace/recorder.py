"""From the arrays of every step to a trace."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdecode.convert.tokenizer import Tokenizer
from jaxdecode.core.record import Record, TreeRecord, WindowRecord
from jaxdecode.core.types import Canvas
from jaxdecode.trace.steps import Logprobs, Row, Run, Step, Trace, TreeStep, WindowStep, used


class Recorder:
    """Collects the steps of a batch.

    Args:
        starts: slot of the first new token of every row.
    """

    def __init__(self, starts: Sequence[int]):
        self.starts = list(starts)
        self.steps: list[list[Step]] = [[] for _ in starts]
        self._length = [start - 1 for start in starts]

    def watch(self, record: Record, canvas: Canvas) -> None:
        """Takes one step: its record and the canvas after it, both on the host."""
        for row, start in enumerate(self.starts):
            if not record.live[row]:
                continue
            if isinstance(record, TreeRecord):
                step = _tree_step(record, canvas, row, self._length[row])
            else:
                step = _window_step(record, canvas, row, start)
            self.steps[row].append(step)
            self._length[row] = int(canvas.length[row])


def list_rows(
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    num_samples: int,
    out: Any,
    steps: Mapping[int, list[Step]],
) -> list[Row]:
    """The rows of a `Generation` with their steps."""
    return [
        Row(
            prompt=list(prompt),
            seed=seeds[i],
            sample=i % num_samples,
            tokens=out.tokens[i],
            finish=out.finish_reasons[i],
            steps=steps[i],
        )
        for i, prompt in enumerate(prompts)
    ]


def make_trace(
    model: str, tokenizer: Tokenizer | None, choice: Any, asked: Any, rows: Sequence[Row]
) -> Trace:
    """A trace with what its readers need of the tokenizer.

    Args:
        model: name of the model.
        tokenizer: its tokenizer.
        choice: the method, a `resolve.Choice`.
        asked: the `Options` of the generation.
        rows: the texts.
    """
    configs = [asked, choice.drafter, choice.verifier, choice.commit]
    options: dict[str, Any] = {}
    for config in configs:
        options |= {} if config is None else dataclasses.asdict(config)
    del options["seed"]  # each row has its own
    known = [] if tokenizer is None else sorted(set(used(rows)))
    pieces, names = {}, {}
    for token in known:
        assert tokenizer is not None
        inside = token < tokenizer.vocab_size
        pieces[token] = tokenizer.token_bytes[token] if inside else b""
        if not pieces[token]:
            names[token] = (tokenizer.backend.piece(token) if inside else "") or f"<{token}>"
    return Trace(
        model=model,
        method=choice.name,
        level=choice.entry.level,
        kind="window" if choice.entry.fills else "tree",
        options=_plain(options),
        pieces=pieces,
        names=names,
        rows=rows,
    )


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON has them; what it has not is shown as Python writes it."""
    return json.loads(json.dumps(options, default=repr))


def _tree_step(record: TreeRecord, canvas: Canvas, row: int, length: int) -> TreeStep:
    # Nodes that can be committed; what hangs below others can not.
    place = {-1: -1}
    parents = record.parent[row].tolist()
    for node, parent in enumerate(parents):
        if record.drafted[row, node] and parent in place:
            place[node] = len(place) - 1
    kept = list(place)[1:]
    last = int(record.num_accepted[row]) + 1
    new = slice(length + 1, int(canvas.length[row]) + 1)
    return TreeStep(
        tokens=record.tokens[row, kept].tolist(),
        parent=[place[parents[node]] for node in kept],
        path=[place[node] for node in record.path[row, :last].tolist()],
        chosen=record.chosen[row, :last].tolist(),
        logprobs=_rounded(canvas.logprob[row, new]),
    )


def _window_step(record: WindowRecord, canvas: Canvas, row: int, start: int) -> WindowStep:
    filled = np.flatnonzero(record.filled[row])
    return WindowStep(
        guesses=_runs(record, row, start),
        filled=(filled - start).tolist(),
        tokens=canvas.tokens[row, filled].tolist(),
        logprobs=_rounded(canvas.logprob[row, filled]),
        reopened=(np.flatnonzero(record.reopened[row]) - start).tolist(),
        final=int(canvas.length[row]) + 1 - start,
    )


def _runs(record: WindowRecord, row: int, start: int) -> list[Run]:
    asked = np.flatnonzero(record.guesses.open[row])
    asked = asked[np.argsort(record.slots[row, asked], kind="stable")]
    slots = record.slots[row, asked] - start
    tokens = record.guesses.tokens[row, asked]
    sure = np.exp(np.nan_to_num(record.guesses.logprob[row, asked], nan=-np.inf))
    digits = "".join(map(str, np.clip(np.floor(sure * 10), 0, 9).astype(int).tolist()))
    ends = [*(np.flatnonzero(np.diff(slots) != 1) + 1).tolist(), len(slots)]
    runs, first = [], 0
    for end in ends:
        if end > first:
            part = slice(first, end)
            runs.append(
                Run(slot=int(slots[first]), tokens=tokens[part].tolist(), sure=digits[part])
            )
        first = end
    return runs


def _rounded(logprobs: Any) -> Logprobs:
    return [round(x, 4) if math.isfinite(x) else None for x in np.asarray(logprobs).tolist()]
