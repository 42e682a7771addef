"""Traces as JSON lines: a header, then one line per row and step.

    {"format": "jaxdecode-trace", "version": 1, "model": ..., "rows": [...], "num_steps": 12}
    {"row": 0, "step": 0, "tokens": [...], "parent": [...], "path": [...], ...}

The header has the texts and the pieces of the tokens that occur, so a file needs no model to be
read. Reading trusts nothing: types, ranges and order are checked, and the steps must add up to
the texts.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxdecode import jsonl
from jaxdecode.convert.atomic import atomic_file
from jaxdecode.errors import DestinationExistsError, InputError, TraceError
from jaxdecode.trace.steps import KINDS, Row, Run, Step, Trace

FORMAT, VERSION = "jaxdecode-trace", 1
_HEADER = ("model", "method", "level", "kind", "options", "pieces", "names")
_ROW = ("prompt", "seed", "sample", "tokens", "finish")
_MAX_TOKEN = 2**31 - 1
# Far above any context, and little enough for a page to hold.
_MAX_SLOT = 2**20


def save(trace: Trace, path: str | Path, *, overwrite: bool = False) -> None:
    """Writes a trace; the file appears whole or not at all.

    Raises:
        DestinationExistsError: it exists and `overwrite` is not set.
        InputError: it cannot be written.
    """
    path = Path(path).expanduser()
    if path.exists() and not overwrite:
        raise DestinationExistsError(f"{path} exists; choose another file or overwrite it.")
    try:
        with atomic_file(path) as file:
            for line in lines(trace):
                file.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}).") from error


def lines(trace: Trace) -> Iterator[dict[str, Any]]:
    """The objects of a file, the header first."""
    yield header(trace) | {"num_steps": sum(len(row.steps) for row in trace.rows)}
    for number, row in enumerate(trace.rows):
        for step, content in enumerate(row.steps):
            yield {"row": number, "step": step} | plain_step(content)


def header(trace: Trace) -> dict[str, Any]:
    """Everything but the steps."""
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    content |= {name: getattr(trace, name) for name in _HEADER}
    content["pieces"] = {str(token): _plain_piece(piece) for token, piece in trace.pieces.items()}
    content["names"] = {str(token): name for token, name in trace.names.items()}
    content["rows"] = [{name: getattr(row, name) for name in _ROW} for row in trace.rows]
    return content


def plain_step(step: Step) -> dict[str, Any]:
    """A step as JSON has it; guesses are `[slot, tokens, digits]` each."""
    content = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    if "guesses" in content:
        content["guesses"] = [[run.slot, run.tokens, run.sure] for run in content["guesses"]]
    return content


def load(path: str | Path) -> Trace:
    """Reads a trace.

    Raises:
        InputError: the file cannot be read.
        TraceError: it is no trace, of another version, truncated or damaged; names the line.
    """
    name = str(path)
    found = jsonl.read(name, option="trace", wanted="a trace has an object per line")
    where, first = next(found, (name, None))
    if first is None or first.get("format") != FORMAT:
        raise TraceError(f"{name}: no trace of jaxdecode; `generate --trace FILE` writes one.")
    # As text: in Python, True and 1.0 equal 1.
    version = str(first.get("version"))
    if version != str(VERSION):
        raise TraceError(
            f"{name}: a trace of version {version[:40]!r}, but this program reads version "
            f"{VERSION}; write it again with this one."
        )
    trace = _header(_Object(first, where))
    num_steps = _Object(first, where).integer("num_steps", 0)
    _read_steps(trace, found, name, num_steps)
    try:
        trace.check()
    except TraceError as error:
        raise TraceError(f"{name}: {error}") from error
    return trace


@dataclasses.dataclass
class _Object:
    """A JSON object whose fields are taken with their type, or refused by name."""

    content: Mapping[str, Any]
    where: str

    def get(self, name: str, kind: type, wanted: str) -> Any:
        value = self.content.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.wrong(f"{name} is not {wanted}")
        return value

    def text(self, name: str) -> str:
        value = self.get(name, str, "text")
        if not _is_text(value):
            raise self.wrong(f"{name} is not text")
        return value

    def integer(self, name: str, low: int, high: int | None = None) -> int:
        return self.check_integer(name, self.content.get(name), low, high)

    def integers(self, name: str, low: int) -> list[int]:
        value = self.get(name, list, "a list")
        return [self.check_integer(name, item, low, _MAX_TOKEN) for item in value]

    def check_integer(self, name: str, value: Any, low: int, high: int | None = None) -> int:
        if type(value) is not int or value < low or (high is not None and value > high):
            wanted = f">= {low}" if high is None else f"from {low} to {high}"
            raise self.wrong(f"{name} has {str(value)[:40]!r} in place of an integer {wanted}")
        return value

    def wrong(self, what: str) -> TraceError:
        return TraceError(f"{self.where}: {what}; the trace is damaged.")


def _header(found: _Object) -> Trace:
    kind = found.text("kind")
    if kind not in KINDS:
        raise found.wrong(f"kind {kind[:40]!r} is not known")
    pieces = found.get("pieces", dict, "an object")
    names = found.get("names", dict, "an object")
    if not all(_is_text(name) for name in names.values()):
        raise found.wrong("names has what is no text")
    rows = found.get("rows", list, "a list")
    if not rows:
        raise found.wrong("there are no rows")
    return Trace(
        model=found.text("model"),
        method=found.text("method"),
        level=found.text("level"),
        kind=kind,
        options=found.get("options", dict, "an object"),
        pieces={_id(found, token): _piece(found, piece) for token, piece in pieces.items()},
        names={_id(found, token): name for token, name in names.items()},
        rows=[_row(row, f"{found.where}, row {i}") for i, row in enumerate(rows)],
    )


def _row(content: Any, where: str) -> Row:
    if not isinstance(content, dict):
        raise TraceError(f"{where}: not an object; the trace is damaged.")
    found = _Object(content, where)
    prompt = found.integers("prompt", 0)
    if not prompt:
        raise found.wrong("the prompt is empty")
    return Row(
        prompt=prompt,
        seed=found.integer("seed", -(2**63), 2**63 - 1),
        sample=found.integer("sample", 0),
        tokens=found.integers("tokens", 0),
        finish=found.text("finish"),
        steps=[],
    )


def _read_steps(
    trace: Trace, found: Iterator[tuple[str, dict[str, Any]]], name: str, num_steps: int
) -> None:
    """Appends the steps to their rows."""
    count, place = 0, (0, -1)
    for where, content in found:
        line = _Object(content, where)
        at = line.integer("row", 0, len(trace.rows) - 1), line.integer("step", 0)
        if at not in ((place[0], place[1] + 1), (place[0] + 1, 0)):
            raise line.wrong(f"row {at[0]}, step {at[1]} follows row {place[0]}, step {place[1]}")
        place, count = at, count + 1
        steps: Any = trace.rows[at[0]].steps
        steps.append(_step(trace.kind, line))
    if count != num_steps:
        raise TraceError(
            f"{name}: {count} steps, but the header says {num_steps}; the file was cut off."
        )


def _step(kind: str, line: _Object) -> Step:
    names = [field.name for field in dataclasses.fields(KINDS[kind])]
    extra = set(line.content) ^ {"row", "step", *names}
    if extra:
        raise line.wrong(f"{', '.join(map(repr, sorted(extra)))[:80]} missing, or not known")
    lows = {"parent": -1}
    values: dict[str, Any] = {
        name: line.integers(name, lows.get(name, 0))
        for name in names
        if name not in ("guesses", "logprobs", "final")
    }
    values["logprobs"] = [_logprob(line, value) for value in line.get("logprobs", list, "a list")]
    if kind == "window":
        values["guesses"] = [_run(line, run) for run in line.get("guesses", list, "a list")]
        values["final"] = line.integer("final", 0)
    return KINDS[kind](**values)


def _run(line: _Object, run: Any) -> Run:
    if not isinstance(run, list) or len(run) != 3 or not isinstance(run[2], str):
        raise line.wrong("guesses has what is not [slot, tokens, digits]")
    part = _Object({"slot": run[0], "tokens": run[1]}, line.where)
    return Run(
        slot=part.integer("slot", 0, _MAX_SLOT), tokens=part.integers("tokens", 0), sure=run[2]
    )


def _logprob(line: _Object, value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and math.isfinite(value)):
        raise line.wrong(f"logprobs has {str(value)[:40]!r} in place of a number")
    return value


def _is_text(value: Any) -> bool:
    """Whether a value is a string that can be written, with no half of a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _id(found: _Object, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 11):
        raise found.wrong(f"{text[:40]!r} is no token id")
    return int(text)


def _plain_piece(piece: bytes) -> str | list[int]:
    """Text, or the bytes of a part of a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def _piece(found: _Object, piece: Any) -> bytes:
    if isinstance(piece, str):
        return piece.encode(errors="replace")
    try:
        return bytes(piece if isinstance(piece, list) else [-1])
    except (ValueError, TypeError) as error:
        raise found.wrong("pieces has what is neither text nor bytes") from error
