"""The tables of `jaxdecode plan` on stdout."""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from jaxdecode.plan.report import Compiled, Memory, Plan
    from jaxdecode.plan.search import Candidate

# What a table may take where no terminal says how wide it is.
_WIDTH = 200
# Candidates of a search that are listed.
_LISTED = 10


def print_plan(head: dict[str, Any], plan: "Plan") -> None:
    """One configuration in full."""
    console = _console()
    console.print(_title(head))
    _print_body(console, plan)


def print_search(
    head: dict[str, Any], plans: Sequence["Plan"], candidates: Sequence["Candidate"]
) -> None:
    """The candidates by their floors, and the compiled ones in full, best first."""
    console = _console()
    console.print(_title(head))
    rows = [
        (
            _mesh(candidate.mesh),
            str(candidate.batch),
            candidate.cache_dtype,
            str(candidate.nodes),
            _gb(candidate.arguments),
            f"{candidate.milliseconds:.2f}",
            f"{candidate.tokens_per_second:,.0f}",
        )
        for candidate in candidates[:_LISTED]
    ]
    more = max(len(candidates) - _LISTED, 0)
    title = "by floor, weights and cache fit" + (f" ({more} more)" if more else "")
    columns = ("mesh", "batch", "cache", "nodes", "GB", "ms per step", "tokens/s")
    console.print(_table(title, columns, rows))
    for number, plan in enumerate(plans, start=1):
        console.print(f"[bold]{number}.[/] compiled:", end=" ")
        _print_body(console, plan)


def _print_body(console: "Console", plan: "Plan") -> None:
    console.print(_setting(plan))
    console.print(_verdict(plan))
    console.print(_table("bytes per device", ("part", "GB"), _memory(plan.memory)))
    if plan.programs:
        columns = ("program", "compiled in", "GB per run", "floor", "over", "collectives")
        rows = [_program(program) for program in plan.programs]
        console.print(_table("programs, per device", columns, rows))
    if plan.passes:
        columns = ("rows", "cached", "scored", "GB", "floor", "over", "ms at least", "bound")
        console.print(_table("a step by the rows that go in", columns, list(_passes(plan))))
    if plan.ladder:
        columns = ("nodes", "GB", "floor", "over", "ms at least", "bound", "cost", "tokens/call",
                   "tokens/s at most")  # fmt: skip
        console.print(_table("a step by number of nodes", columns, list(_ladder(plan))))
        console.print(f"recommended: {plan.recommended} nodes; acceptance curve: {plan.curve}")


def _console() -> "Console":
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    return console


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _title(head: dict[str, Any]) -> str:
    devices = f"{head['num_devices']} devices, {head['num_hosts']} hosts"
    return f"{head['model']} on {head['topology']} ({devices}), weights in {head['dtype']}"


def _setting(plan: "Plan") -> str:
    copies = f", every KV head {plan.kv_copies} times" if plan.kv_copies > 1 else ""
    return (
        f"mesh {plan.mesh}, batch {plan.batch}, context {plan.context:,} in {plan.slots:,} slots, "
        f"cache in {plan.cache_dtype}{copies}, attention by {_attention(plan)}"
    )


def _attention(plan: "Plan") -> str:
    return "XLA" if plan.attention == "xla" else f"the {plan.attention.upper()} kernel"


def _verdict(plan: "Plan") -> str:
    memory = plan.memory
    if plan.failure is not None:
        return f"[red]does not fit[/]: {plan.failure}"
    if memory.missing:
        return (
            f"[red]does not fit[/]: {_parts(memory)} need {_gb(memory.needed)} GB of "
            f"{_gb(memory.available)} GB per device, {_gb(memory.missing)} GB too much"
        )
    share = memory.needed / memory.available
    return f"[green]fits[/]: {_gb(memory.needed)} of {_gb(memory.available)} GB ({share:.0%})"


def _parts(memory: "Memory") -> str:
    parts = [f"weights of {_gb(memory.weights)}", f"a cache of {_gb(memory.cache)}"]
    if memory.temporaries is not None:
        parts.append(f"temporaries of {_gb(memory.temporaries)}")
    return f"{', '.join(parts[:-1])} and {parts[-1]} GB"


def _memory(memory: "Memory") -> list[tuple[str, str]]:
    rows = [("weights", _gb(memory.weights)), ("cache", _gb(memory.cache))]
    if memory.temporaries is not None:
        rows += [("temporaries", _gb(memory.temporaries)), ("other", _gb(memory.other))]
    return [*rows, ("available", _gb(memory.available))]


def _program(program: "Compiled") -> tuple[str, ...]:
    moved, floor = program.hbm_bytes, program.floor_bytes
    kinds: dict[str, int] = {}
    for collective in program.collectives:
        kinds[collective["kind"]] = kinds.get(collective["kind"], 0) + collective["times"]
    return (
        program.name,
        f"{program.seconds:.1f} s",
        "not readable" if moved is None else _gb(moved),
        "-" if floor is None else _gb(floor),
        "-" if floor is None or moved is None else f"{moved / floor:.2f}x",
        ", ".join(f"{times} {kind}" for kind, times in kinds.items()) or "-",
    )


def _ladder(plan: "Plan") -> Iterable[tuple[str, ...]]:
    for rung in plan.ladder:
        guess = "" if rung.compiled else "~"
        chosen = "[bold]" if rung.nodes == plan.recommended else ""
        yield (
            f"{chosen}{rung.nodes}",
            f"{guess}{_gb(rung.hbm_bytes)}",
            _gb(rung.floor_bytes),
            f"{guess}{rung.hbm_bytes / rung.floor_bytes:.2f}x",
            f"{guess}{rung.milliseconds:.2f}",
            rung.bound,
            f"{rung.cost:.2f}",
            f"{rung.tokens:.2f}",
            f"{rung.tokens_per_second:,.0f}",
        )


def _passes(plan: "Plan") -> Iterable[tuple[str, ...]]:
    for each in plan.passes:
        moved = each.hbm_bytes
        yield (
            f"{each.rows:,}",
            f"{each.cached:,}",
            f"{each.scored:,}",
            "not readable" if moved is None else _gb(moved),
            _gb(each.floor_bytes),
            "-" if moved is None else f"{moved / each.floor_bytes:.2f}x",
            f"{each.milliseconds:.2f}",
            each.bound,
        )


def _mesh(sizes: dict[str, int]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f}"
