"""A trace in a terminal: as it was written, in colour; or as plain lines, one per step."""

import time
from collections.abc import Iterator
from typing import Any

from jaxdecode.trace.steps import Row, Trace, TreeStep, WindowStep, apply
from jaxdecode.trace.text import spell, visible

# Neighbouring steps differ; all are readable on dark and light.
_COLOURS = ("cyan", "green", "yellow", "magenta", "blue")


def lines(trace: Trace, row: Row) -> Iterator[str]:
    """What every step did, a line each."""
    final = 0
    text: dict[int, int] = {}
    for number, step in enumerate(row.steps, 1):
        final = apply(step, text, final)
        done = _tree_line(trace, step) if isinstance(step, TreeStep) else _window_line(trace, step)
        yield f"step {number:>4}  {done}"
    yield summary(row)


def summary(row: Row) -> str:
    """The row in one line."""
    num, steps = len(row.tokens), max(len(row.steps), 1)
    end = visible(row.finish)
    return f"{num} tokens in {len(row.steps)} steps, {num / steps:.2f} per step; end: {end}"


def play(trace: Trace, row: Row, speed: float) -> None:
    """Writes the text as it came, on a terminal.

    Args:
        trace: where the row is from.
        row: the text.
        speed: steps per second.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if trace.kind == "tree":
        _play_tree(console, trace, row, 1 / speed)
    else:
        _play_window(console, trace, row, 1 / speed)
    console.print()
    console.print(summary(row), markup=False)


def _tree_line(trace: Trace, step: TreeStep) -> str:
    drafts, new = len(step.tokens) - 1, "".join(spell(trace, step.new))
    return f"{step.num_drafted} of {drafts} drafts  {_quoted(new)}"


def _window_line(trace: Trace, step: WindowStep) -> str:
    asked = sum(len(run.tokens) for run in step.guesses)
    filled = zip(step.filled, step.tokens, strict=True)
    parts = [f"{slot}:{_quoted(''.join(spell(trace, [token])))}" for slot, token in filled]
    again = f", {len(step.reopened)} reopened" if step.reopened else ""
    return f"{len(step.filled)} of {asked} slots{again}  {' '.join(parts)}"


def _quoted(text: str) -> str:
    return "'" + visible(text).replace("\n", "\\n") + "'"


def _play_tree(console: Any, trace: Trace, row: Row, pause: float) -> None:
    """Tokens in the colour of their step; the target's own are underlined."""
    from rich.text import Text

    texts = spell(trace, row.tokens)
    for number, step in enumerate(row.steps):
        colour = _COLOURS[number % len(_COLOURS)]
        for i in range(len(step.new)):
            style = colour if i < step.num_drafted else f"{colour} underline"
            console.print(Text(visible(next(texts)), style), end="", soft_wrap=True)
        time.sleep(pause)


def _play_window(console: Any, trace: Trace, row: Row, pause: float) -> None:
    """The canvas after every step in place of the one before; what is new stands out."""
    from rich.live import Live

    text: dict[int, int] = {}
    final, size = 0, len(row.tokens)
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for step in row.steps:
            final = apply(step, text, final)
            live.update(_canvas(trace, text, set(step.filled), size), refresh=True)
            time.sleep(pause)


def _canvas(trace: Trace, text: dict[int, int], new: set[int], size: int) -> Any:
    from rich.text import Text

    shown = Text()
    for slot in range(size):
        if slot in text:
            piece = visible("".join(spell(trace, [text[slot]])))
            shown.append(piece, "bold reverse" if slot in new else "")
        else:
            shown.append("_", "dim")
    return shown
