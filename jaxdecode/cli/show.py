"""`jaxdecode show`: a trace of `generate --trace` in the terminal, or as a page."""

import dataclasses
import sys
from typing import Annotated

import tyro
from tyro.conf import arg

from jaxdecode import checks
from jaxdecode.cli.common import Debug, Overwrite, note
from jaxdecode.cli.output import open_output
from jaxdecode.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """Show what happened in every step of a generation.

    A trace is a file that `jaxdecode generate --trace FILE` wrote. On a terminal it is played;
    into a pipe it goes as a line per step. With --html it becomes one page for a browser, which
    needs no server and no network; two traces stand side by side, with their differences marked.
    """

    traces: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        arg(metavar="TRACE [TRACE]", help_behavior_hint=""),
    ]
    """One trace, or two to compare."""
    html: Annotated[str | None, arg(metavar="FILE", constructor=str, help_behavior_hint="")] = None
    """Write a page to this file."""
    overwrite: Overwrite = False
    row: Annotated[int, arg(metavar="N")] = 0
    """Which text to play in the terminal, from 0."""
    speed: float = 8.0
    """Steps per second in the terminal."""
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        from jaxdecode.trace import files

        self._check()
        traces = [files.load(path) for path in self.traces]
        if self.html is not None:
            from jaxdecode.trace import page

            with open_output(self.html, overwrite=self.overwrite, option="--html") as out:
                out.write(page.render(traces))
            note(f"written: {self.html}")
            return 0
        self._play(traces[0])
        return 0

    def _check(self) -> None:
        if len(self.traces) not in (1, 2):
            raise InputError(f"give one trace, or two to compare, got {len(self.traces)}.")
        if len(self.traces) == 2 and self.html is None:
            raise InputError("two traces are compared on a page; add --html FILE.")
        checks.number("--speed", self.speed, "a number > 0", lambda x: x > 0)
        checks.integer("--row", self.row, low=0)

    def _play(self, trace) -> None:
        from jaxdecode.trace import terminal

        if self.row >= len(trace.rows):
            raise InputError(f"--row {self.row}: the trace has {len(trace.rows)} texts, from 0.")
        row = trace.rows[self.row]
        if sys.stdout.isatty():
            terminal.play(trace, row, self.speed)
            return
        for line in terminal.lines(trace, row):
            print(line)
