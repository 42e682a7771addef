"""Rows of a job that are finished before their part is: they survive a kill as well.

    rows-00003-of-00040.1f0c9a2e.jsonl    a line per row: its number and its results, tab between

Rows end in any order and belong to several parts at once. Each is appended to a file of its part
that only this run writes; once all rows of a part are there, in the files of any run, they are put
in order and become the part. A line that a kill has cut short does not count, so its row is made
again.
"""

import secrets
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdecode import jobs
from jaxdecode.errors import JaxdecodeError


class _Place(NamedTuple):
    """Where the results of a row are."""

    path: Path
    start: int
    size: int


class Journal:
    """What one run adds to the parts of a job."""

    def __init__(self, job: jobs.Job):
        self._job = job
        self._run = secrets.token_hex(4)
        self._left: dict[int, range | set[int]] = {}

    def begin(self, part: int) -> Collection[int]:
        """The rows of a part that no run has finished; writes the part if there are none.

        Raises:
            JaxdecodeError: no space is left.
        """
        rows, there = self._job.rows(part), self._places(part)
        left = set(rows) - set(there) if there else rows
        if left:
            self._left[part] = left
        else:
            self._write(part)
        return frozenset(left) if there else rows

    def add(self, row: int, lines: Sequence[str]) -> None:
        """Keeps the results of a row, a line of JSON each; the last row of a part writes it.

        Raises:
            JaxdecodeError: no space is left.
        """
        part = row // self._job.rows_per_part
        path = self._job.journal(part, self._run)
        with jobs.space(self._job), path.open("ab") as file:
            file.write("\t".join([str(row), *lines]).encode() + b"\n")
        # A set only of parts under way: there may be millions of rows.
        left = self._left[part]
        if isinstance(left, range):
            left = self._left[part] = set(left)
        left.discard(row)
        if not left:
            del self._left[part]
            self._write(part)

    def _write(self, part: int) -> None:
        places = self._places(part)
        lost = [row for row in self._job.rows(part) if row not in places]
        if lost:
            raise JaxdecodeError(
                f"{self._job.folder}: the files of part {part} have lost row {lost[0]}; run the "
                "same command again."
            )
        in_order = [places[row] for row in self._job.rows(part)]
        try:
            jobs.write(self._job, part, _lines(in_order))
        except FileNotFoundError:
            # Another process, which was asked for the same part, was faster and has tidied up.
            if not (self._job.part(part).exists() or self._job.results.exists()):
                raise
        for path in self._job.journals(part):
            path.unlink(missing_ok=True)

    def _places(self, part: int) -> dict[int, _Place]:
        """Where the finished rows of a part are."""
        found: dict[int, _Place] = {}
        own, num_lines = self._job.rows(part), self._job.lines_per_row
        for path in self._job.journals(part):
            start = 0
            with path.open("rb") as file:
                for line in file:
                    row = _row(line, num_lines)
                    if row in own:
                        found[row] = _Place(path, start, len(line))
                    start += len(line)
        return found


def _row(line: bytes, num_lines: int) -> int:
    """The row of a line; -1 if it is not whole."""
    number, *results = line[:-1].split(b"\t")
    whole = all(text.startswith(b"{") and text.endswith(b"}") for text in results)
    if line.endswith(b"\n") and len(results) == num_lines and whole and number.isdigit():
        return int(number)
    return -1


def _lines(places: Sequence[_Place]) -> Iterator[str]:
    for place in places:
        with place.path.open("rb") as file:
            file.seek(place.start)
            line = file.read(place.size).decode()
        yield from line.rstrip("\n").split("\t")[1:]
