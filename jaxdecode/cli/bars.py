"""Progress on stderr; imported where a bar is shown, for rich takes long to import."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

# Seconds between two lines where stderr is no terminal.
PAUSE = 30.0


class Bar(Progress):
    """A bar; where stderr is a file, which cannot be drawn over, a line now and then."""

    def __init__(self, *columns: Any, **options: Any) -> None:
        super().__init__(
            *columns,
            console=Console(stderr=True),
            transient=sys.stderr.isatty(),
            # Otherwise rich would send our results to stderr.
            redirect_stdout=False,
            redirect_stderr=False,
            **options,
        )
        self._told = time.monotonic()

    def update(self, task_id: TaskID, **changes: Any) -> None:  # type: ignore[override]
        """As rich has it; the line it then tells may be due."""
        super().update(task_id, **changes)
        self._tell()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As `update`."""
        super().advance(task_id, advance)
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if not self.console.is_terminal and now - self._told >= PAUSE:
            self._told = now
            self.console.print(self.get_renderable())
