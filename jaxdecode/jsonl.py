"""Files with one JSON object per line, read so that an error names the line."""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from jaxdecode.errors import InputError

_BOM = b"\xef\xbb\xbf"
_MAX_LINE = 1 << 26  # bytes


def read(name: str, *, option: str, wanted: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with where it stands, `FILE:LINE`; blank lines are skipped.

    Args:
        name: path of the file; "-" is standard input.
        option: what errors call the file.
        wanted: what errors say a line should be.

    Raises:
        InputError: naming file and line of the first line that is no object.
    """
    if name == "-":
        yield from _objects(sys.stdin, "<stdin>", wanted)
        return
    try:
        file = Path(name).expanduser().open(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{option} {name}: cannot be read ({error.strerror}).") from error
    with file:
        yield from _objects(file, name, wanted)


def lines(name: str, *, option: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, each with its number, one after the other.

    A line too long for `parse` comes cut off, so that no file can fill the memory.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with Path(name).expanduser().open("rb") as file:
            file.seek(len(_BOM) if file.read(len(_BOM)) == _BOM else 0)
            for number in itertools.count(1):
                line = rest = file.readline(_MAX_LINE)
                if not line:
                    return
                while len(rest) == _MAX_LINE and not rest.endswith(b"\n"):
                    rest = file.readline(_MAX_LINE)
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"{option} {name}: cannot be read ({error.strerror}).") from error


def parse(line: bytes, where: str, wanted: str) -> dict[str, Any]:
    """The object of one line.

    Raises:
        InputError: it is none; the message begins with `where`.
    """
    if len(line) == _MAX_LINE:
        raise InputError(f"{where}: longer than {_MAX_LINE >> 20} MiB.")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text ({error.reason}).") from error
    return _object(text, where, wanted)


def type_name(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _objects(file: TextIO, name: str, wanted: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{name}:{number}"
                yield where, _object(line, where, wanted)
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 text after line {number} ({error.reason}).") from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}).") from error


def _object(line: str, where: str, wanted: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg} (column {error.colno}).") from error
    except (ValueError, RecursionError) as error:
        # An integer of thousands of digits, or lists nested without end.
        raise InputError(f"{where}: not usable JSON ({error}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: {wanted}, got a JSON {type_name(content)}.")
    return content
