"""What a generation gives back, row by row."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdecode.convert.tokenizer import Tokenizer
from jaxdecode.core.types import FINISH_REASONS
from jaxdecode.engine import Snapshot
from jaxdecode.errors import InputError
from jaxdecode.options import Options
from jaxdecode.sampling.stop import cut_text
from jaxdecode.trace import files, notebook
from jaxdecode.trace.steps import Trace


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowStats:
    """Statistics of one row.

    Attributes:
        num_tokens: new tokens, the stop token included.
        nfe: target forward calls the row took part in.
        acceptance_length: new tokens per target call; 1.0 for plain decoding.
        tokens_forwarded: query tokens pushed through the target for this row.
        seconds: wall time of the row's batch, prefill and any compilation included; of a row that
            came into a running batch, from then to when it was found done.
        tokens_per_second: num_tokens / seconds.
        num_judged: segments that the target judged with a token each; those count as nfe.
    """

    num_tokens: int
    nfe: int
    acceptance_length: float
    tokens_forwarded: int
    seconds: float
    tokens_per_second: float
    num_judged: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alternative:
    """One of several texts that a method wrote for a row.

    Attributes:
        text: decoded new tokens; None without a tokenizer.
        tokens: new token ids, including the token that ended the text.
        logprobs: log-probability of each new token under the model.
    """

    text: str | None
    tokens: list[int]
    logprobs: list[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """What `generate` returns.

    Every list has one entry per row: the n samples of the first prompt, then those of the second,
    and so on. Sample 0 is what a caller who asks for one sample gets.

    Attributes:
        texts: decoded new tokens, cut before a stop string; None without a tokenizer.
        tokens: new token ids, including the token that ended the row.
        logprobs: log-probability of each new token under the model that wrote it (temperature 1,
            no warp).
        finish_reasons: "stop" (stop token), "stop_string" or "length".
        stats: counters and times.
        steps: step of the row at which each new token was committed, from 0.
        alternatives: all texts of a row, best first, of methods that write several at once; the
            other fields then tell of the best. Empty for every other method.
        trace: what happened in every step, if it was asked for.
    """

    texts: list[str | None]
    tokens: list[list[int]]
    logprobs: list[list[float]]
    finish_reasons: list[str]
    stats: list[RowStats]
    steps: list[list[int]]
    alternatives: list[list[Alternative]]
    trace: Trace | None = None

    def save_trace(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes the trace as JSON lines, which `jaxdecode show` reads; it appears whole.

        Raises:
            InputError: there is no trace, or the file cannot be written.
            DestinationExistsError: the file exists and `overwrite` is not set.
        """
        files.save(self._traced(), path, overwrite=overwrite)

    def show(self, other: "Generation | None" = None) -> None:
        """Shows the trace in a notebook; with another generation, both side by side.

        Raises:
            InputError: there is no trace.
            UnsupportedError: this is no notebook.
        """
        notebook.show([part._traced() for part in (self, other) if part is not None])

    def _traced(self) -> Trace:
        if self.trace is None:
            raise InputError("this generation has no trace; call generate(..., trace=True).")
        return self.trace


def collect(rows: Sequence[tuple]) -> Generation:
    """One `Generation` from the results of its rows."""
    names = [field.name for field in dataclasses.fields(Generation) if field.name != "trace"]
    columns: Any = map(list, zip(*rows, strict=True))
    return Generation(**dict(zip(names, columns, strict=True)))


def row_result(
    tokenizer: Tokenizer | None, snapshot: Snapshot, row: int, start: int, options: Options
) -> tuple:
    """One row's fields of `Generation`, in order; its new tokens begin at slot `start`."""
    tokens = snapshot.new_tokens(row, start).tolist()
    end = start + len(tokens)
    logprobs = snapshot.canvas.logprob[row, start:end].tolist()
    alternatives = _alternatives(tokenizer, snapshot, row, start)
    if alternatives:
        tokens, logprobs = alternatives[0].tokens, alternatives[0].logprobs
        end = start + len(tokens)
    text = None
    if tokenizer is not None:
        text = cut_text(tokenizer.decode(tokens), options.stop)
    nfe = int(snapshot.stats.nfe[row])
    steps = snapshot.canvas.commit_step[row, start:end]
    if snapshot.outputs is not None and snapshot.outputs.step is not None:
        steps = snapshot.outputs.step[row, 0, start:end]
    # Given parts of a template, which lie between what is new, have no step.
    num_new = int((steps >= 0).sum()) if not alternatives else len(tokens)
    stats = RowStats(
        num_tokens=num_new,
        nfe=nfe,
        acceptance_length=num_new / max(nfe, 1),
        tokens_forwarded=int(snapshot.stats.tokens_forwarded[row]),
        seconds=snapshot.seconds,
        tokens_per_second=num_new / snapshot.seconds,
    )
    return (
        text,
        tokens,
        logprobs,
        FINISH_REASONS[int(snapshot.canvas.finish[row])],
        stats,
        steps.tolist(),
        alternatives,
    )


def whole_texts(
    tokenizer: Tokenizer | None, out: Generation, before: Sequence[list[int]]
) -> Generation:
    """The same generation with what stood before the new tokens of every row."""
    tokens = [given + new for given, new in zip(before, out.tokens, strict=True)]
    texts = [None if tokenizer is None else tokenizer.decode(row) for row in tokens]
    logprobs = zip(before, out.logprobs, strict=True)
    steps = zip(before, out.steps, strict=True)
    return dataclasses.replace(
        out,
        texts=texts,
        tokens=tokens,
        logprobs=[[0.0] * len(given) + new for given, new in logprobs],
        steps=[[-1] * len(given) + new for given, new in steps],
    )


def _alternatives(
    tokenizer: Tokenizer | None, snapshot: Snapshot, row: int, start: int
) -> list[Alternative]:
    """The texts of a row of a method that writes several, best first."""
    if snapshot.outputs is None:
        return []
    outputs, found = snapshot.outputs, []
    for k, end in enumerate(outputs.length[row].tolist()):
        if end:
            tokens = outputs.tokens[row, k, start:end].tolist()
            text = None if tokenizer is None else tokenizer.decode(tokens)
            logprobs = outputs.logprob[row, k, start:end].tolist()
            found.append(Alternative(text=text, tokens=tokens, logprobs=logprobs))
    return found
