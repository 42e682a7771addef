"""Where results go and how they look: stdout or a file that appears whole; progress on stderr."""

import contextlib
import dataclasses
import datetime
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from jaxdecode.convert.atomic import atomic_file
from jaxdecode.errors import DestinationExistsError, InputError

if TYPE_CHECKING:
    from jaxdecode.api import Generation


@contextlib.contextmanager
def open_output(name: str | None, *, overwrite: bool, option: str = "--out") -> Iterator[TextIO]:
    """Yields stdout, or a hidden sibling of the file that takes its name when all went well.

    Raises:
        DestinationExistsError: the file exists and `overwrite` is not set.
        InputError: it cannot be written.
    """
    if name is None:
        yield sys.stdout
        return
    path = Path(name).expanduser()
    check_output(path, overwrite, option)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(atomic_file(path))
        except OSError as error:
            raise InputError(f"{option} {name}: cannot be written ({error.strerror}).") from error
        yield file
        check_output(path, overwrite, option)


def check_output(path: Path, overwrite: bool, option: str = "--out") -> None:
    """Refuses to write where something is that must stay."""
    if path.exists() and not path.is_file():
        raise InputError(f"{option} {path}: exists and is not a file.")
    if path.exists() and not overwrite:
        raise DestinationExistsError(f"{option} {path} exists; choose another file or --overwrite.")


def record(
    result: "Generation", row: int, *, num_samples: int = 1, logprobs: bool = False
) -> dict[str, Any]:
    """What the JSON line of one row says."""
    content = {
        "tokens": result.tokens[row],
        "text": result.texts[row],
        "finish_reason": result.finish_reasons[row],
    }
    if logprobs:
        content["logprobs"] = result.logprobs[row]
    texts = [dataclasses.asdict(text) for text in result.alternatives[row]]
    if texts:
        content["alternatives"] = [
            {key: text[key] for key in text if logprobs or key != "logprobs"} for text in texts
        ]
    content["stats"] = dataclasses.asdict(result.stats[row])
    return content if num_samples == 1 else content | {"sample": row % num_samples}


@contextlib.contextmanager
def progress_bar(title: str, total: int, shown: bool) -> Iterator[Callable[[int], None] | None]:
    """A bar of new tokens on stderr; yields the function that sets how many there are."""
    if not shown:
        yield None
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

    from jaxdecode.cli.bars import Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} tokens, {task.fields[rate]:.1f} per second"),
        TimeElapsedColumn(),
    )
    with Bar(*columns) as bar:
        task = bar.add_task(title, total=total, rate=0.0)

        def advance(num_tokens: int) -> None:
            seconds = bar.tasks[0].elapsed or 0.0
            bar.update(task, completed=num_tokens, rate=num_tokens / max(seconds, 1e-9))

        yield advance


@contextlib.contextmanager
def run_bar(title: str, total: int, shown: bool) -> Iterator[Callable[..., None]]:
    """A bar of runs on stderr with the time left; yields the function that counts one or several.

    Runs that end together are counted together, or the time left would be too short: it is judged
    from the second count on, for the first one takes compilation as well.
    """
    if not shown:
        yield lambda num=1: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from jaxdecode.cli.bars import Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        # Runs of different methods and prompts differ: the speed is taken over all so far.
        TimeRemainingColumn(),
    )
    with Bar(*columns, speed_estimate_period=3600.0) as bar:
        task = bar.add_task(title, total=total)
        yield lambda num=1: bar.advance(task, num)


@contextlib.contextmanager
def rows_bar(title: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar of rows on stderr, with rows and tokens per second and the time left.

    Yields what counts one more row with so many tokens. Rates are those since the first row
    ended: what came before is mostly compilation. Short rows end first, so the time left is told
    once a hundredth of the rows, or a hundred of them, are there.
    """
    if not shown:
        yield lambda num_tokens: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    from jaxdecode.cli.bars import Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rates]}"),
        TimeElapsedColumn(),
        TextColumn("left {task.fields[left]}"),
    )
    first = (0.0, 0)
    num_rows = all_tokens = 0
    with Bar(*columns) as bar:
        task = bar.add_task(title, total=total, rates="", left="-:--:--")

        def count(num_tokens: int) -> None:
            nonlocal first, num_rows, all_tokens
            num_rows, all_tokens, now = num_rows + 1, all_tokens + num_tokens, time.monotonic()
            bar.advance(task)
            if num_rows == 1:
                first = (now, num_tokens)
                return
            seconds = max(now - first[0], 1e-9)
            speed, tokens = (num_rows - 1) / seconds, (all_tokens - first[1]) / seconds
            rates = f"{speed:.3g} rows/s, {tokens:.4g} tokens/s"
            told = num_rows >= min(100, total / 100)
            left = datetime.timedelta(seconds=round((total - num_rows) / speed))
            bar.update(task, rates=rates, left=str(left) if told else "-:--:--")

        yield count
