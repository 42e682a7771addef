"""Prompts of the command line: one text, one chat message, or the lines of a JSONL file."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, TextIO

from jaxdecode.errors import InputError

_FORMS = ("prompt", "messages", "tokens")
_WANTED = (
    'expected an object with exactly one of "prompt" (text), "messages" (list) or "tokens" (list '
    'of ids), and optionally "seed" (integer)'
)


@dataclasses.dataclass(frozen=True)
class PromptLine:
    """One prompt and where it came from.

    Attributes:
        where: what error messages call it: `FILE:LINE`, or the option.
        prompt: what `jaxdecode.generate` takes.
        seed: the line's own seed, if it has one.
    """

    where: str
    prompt: dict[str, Any]
    seed: int | None = None


def read_prompts(name: str) -> list[PromptLine]:
    """Prompts of a JSONL file, or of standard input if `name` is "-"; blank lines are skipped.

    Raises:
        InputError: naming file and line of the first line that cannot be used.
    """
    if name == "-":
        return _parse(sys.stdin, "<stdin>")
    try:
        with Path(name).expanduser().open(encoding="utf-8-sig") as file:
            return _parse(file, name)
    except OSError as error:
        raise InputError(f"--prompts {name}: cannot be read ({error.strerror}).") from error


def _parse(file: TextIO, name: str) -> list[PromptLine]:
    lines, number = [], 0
    try:
        for number, line in enumerate(file, 1):
            if line.strip():
                lines.append(_parse_line(line, f"{name}:{number}"))
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 text after line {number} ({error.reason}).") from error
    if not lines:
        raise InputError(f"{name}: there are no prompts; give one JSON object per line.")
    return lines


def _parse_line(line: str, where: str) -> PromptLine:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg} (column {error.colno}).") from error
    except (ValueError, RecursionError) as error:
        # An integer of thousands of digits, or lists nested without end.
        raise InputError(f"{where}: not usable JSON ({error}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: {_WANTED}, got a JSON {_json_type(content)}.")
    forms = [form for form in _FORMS if form in content]
    unknown = sorted(set(content) - {*_FORMS, "seed"})
    if len(forms) != 1 or unknown:
        raise InputError(f"{where}: {_WANTED}, got the keys {sorted(content)}.")
    _check_form(forms[0], content[forms[0]], where)
    seed = content.get("seed")
    if "seed" in content and (type(seed) is not int or not -(2**63) <= seed < 2**63):
        raise InputError(f'{where}: "seed" is {seed!r}, expected a 64-bit integer.')
    return PromptLine(where, {forms[0]: content[forms[0]]}, seed)


def _check_form(form: str, value: Any, where: str) -> None:
    wanted = str if form == "prompt" else list
    if not isinstance(value, wanted):
        name = "text" if wanted is str else "a list"
        raise InputError(f'{where}: "{form}" must be {name}, got a JSON {_json_type(value)}.')
    if not value:
        raise InputError(f'{where}: "{form}" is empty.')


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
