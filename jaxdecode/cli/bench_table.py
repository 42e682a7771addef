"""The tables of `jaxdecode bench`: on a terminal, and as Markdown."""

import itertools
import sys
from collections.abc import Iterator
from typing import Any

_LEFT = ("category", "method", "equal")
_COLUMNS = (
    "category",
    "method",
    "prompts",
    "tokens/s",
    "speed-up",
    "accepted",
    "nfe",
    "forwarded",
    "equal",
)
# What a table may take where no terminal says how wide it is.
_WIDTH = 200


def print_tables(document: dict[str, Any]) -> None:
    """One table per batch size and temperature, then what was compared."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    plan, machine = document["plan"], document["machine"]
    device = f"{machine['cpu']}, {machine['cores']} cores, jax {machine['jax']}"
    console.print(f"{document['model']}, {machine['dtype']}, {machine['device']} ({device})")

    for (batch, temperature), rows in itertools.groupby(document["summary"], _key):
        title = f"batch {batch}, temperature {temperature:g}, {plan['max_new_tokens']} new tokens"
        console.print(_section(title, list(rows), plan["timed"]))
    for line in document["compared"]:
        console.print(_verdict(line))
    for label, version in document.get("peers", {}).items():
        console.print(f"{label}: {version}")


def markdown(document: dict[str, Any]) -> str:
    """The same tables for a page: what was run and where, then one table per section."""
    plan, machine = document["plan"], document["machine"]
    lines = [
        f"{document['model']}, {machine['dtype']}, {machine['device']}: {machine['cpu']}, "
        f"{machine['cores']} cores, jax {machine['jax']}, jaxdecode {machine['jaxdecode']}; "
        f"medians of {plan['repeats']}, prefill included"
    ]
    for label, version in document.get("peers", {}).items():
        lines.append(f"`{label}`: {version}")
    for section in dict.fromkeys(map(_key, document["summary"])):
        rows = [row for row in document["summary"] if _key(row) == section]
        title = f"batch {section[0]}, temperature {section[1]:g}"
        lines += ["", f"{title}, {plan['max_new_tokens']} new tokens at most", ""]
        lines.append("| " + " | ".join(_COLUMNS) + " |")
        lines.append("|" + "|".join("---" if c in _LEFT else "---:" for c in _COLUMNS) + "|")
        for row in rows:
            cells = [row["category"], *_cells(row, plan["timed"])]
            cells[1] = f"`{cells[1]}`"
            lines.append("| " + " | ".join(cells).replace("[red]", "").replace("[/]", "") + " |")
    return "\n".join(lines) + "\n"


def _key(row: dict[str, Any]) -> tuple[int, float]:
    return row["batch_size"], row["temperature"]


def _section(title: str, rows: list[dict[str, Any]], timed: bool) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in _LEFT else "right", no_wrap=True)
    last = None
    for row in rows:
        new = row["category"] != last
        if new and last is not None:
            table.add_section()
        last = row["category"]
        table.add_row(last if new else "", *_cells(row, timed))
    return table


def _cells(row: dict[str, Any], timed: bool) -> Iterator[str]:
    yield row["line"]
    yield str(row["prompts"])
    yield f"{row['tokens_per_second']:.1f}" if timed else "-"
    yield speedup(row) if timed or row["speedup"] is None else "-"
    yield _number(row["acceptance_length"], ".2f")
    yield _number(row["nfe"], ".0f")
    yield _number(row["tokens_forwarded"], ",.0f")
    yield equal(row)


def speedup(row: dict[str, Any]) -> str:
    """The ratio to the baseline and its interval, or that there is none."""
    if row["speedup"] is None:
        return "[red]differs[/]"
    low, high = row["speedup_range"]
    return f"{row['speedup']:.2f}x ({low:.2f}-{high:.2f})"


def equal(row: dict[str, Any]) -> str:
    """What the column says of the tokens."""
    differ, ties = row["differ"], row["ties"]
    if differ is None:
        return "n/a"
    if row.get("other"):
        return f"{row['other']} of {row['prompts']} differ"
    parts = [f"[red]{differ} differ[/]"] if differ else []
    if ties:
        parts.append(f"{ties} near tie{'s' * (ties > 1)}")
    return ", ".join(parts) if differ else f"yes{f' ({parts[0]})' if parts else ''}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _verdict(line: dict[str, Any]) -> str:
    if not line["prompts"]:
        return f"{line['line']}: promises no equal tokens here, none compared"
    found = equal(line) if line["differ"] or line["ties"] else "equal"
    return (
        f"{line['line']}: {line['tokens']:,} tokens of {line['prompts']} rows compared with "
        f"{line['reference']}: {found}"
    )
