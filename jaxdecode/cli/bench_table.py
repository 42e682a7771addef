"""The tables of `jaxdecode bench` on stdout."""

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

    def key(row):
        return (row["batch_size"], row["temperature"])

    for (batch, temperature), rows in itertools.groupby(document["summary"], key):
        title = f"batch {batch}, temperature {temperature:g}, {plan['max_new_tokens']} new tokens"
        console.print(_section(title, list(rows), plan["timed"]))
    for line in document["compared"]:
        console.print(_verdict(line))


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
    if row["speedup"] is None:
        yield "[red]differs[/]"
    else:
        yield f"{row['speedup']:.2f}x" if timed else "-"
    yield f"{row['acceptance_length']:.2f}"
    yield f"{row['nfe']:.0f}"
    yield f"{row['tokens_forwarded']:,.0f}"
    yield _equal(row["differ"], row["ties"])


def _equal(differ: int | None, ties: int | None) -> str:
    if differ is None:
        return "n/a"
    parts = [f"[red]{differ} differ[/]"] if differ else []
    if ties:
        parts.append(f"{ties} near tie{'s' * (ties > 1)}")
    return ", ".join(parts) if differ else f"yes{f' ({parts[0]})' if parts else ''}"


def _verdict(line: dict[str, Any]) -> str:
    if not line["prompts"]:
        return f"{line['line']}: promises no equal tokens here, none compared"
    found = _equal(line["differ"], line["ties"]) if line["differ"] or line["ties"] else "equal"
    return (
        f"{line['line']}: {line['tokens']:,} tokens of {line['prompts']} rows compared with "
        f"{line['reference']}: {found}"
    )
