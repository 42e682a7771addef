"""The registry for readers: as dicts, in words, and as the table of the docs."""

import collections
import dataclasses
from typing import Any

from jaxdecode import resolve
from jaxdecode.core.entry import Entry
from jaxdecode.core.registry import METHODS


def methods() -> list[dict[str, Any]]:
    """The registry as a list of dicts: name, seats, exactness level, reference, source, tier."""
    rows = {name: entry._asdict() for name, entry in METHODS.items()}
    return [
        {"name": name, **row}
        | {"file": home(name), "needs": needs_of(name), "refuses": list(row["refuses"])}
        | {"options": dict(row["options"])}
        for name, row in rows.items()
    ]


def needs_of(method: str) -> list[str]:
    """What the caller must give: a model of another kind, and what comes beside it."""
    entry = METHODS[method]
    kind = "insertion model" if "insertions" in entry.needs else "masked diffusion model"
    model = [kind] if entry.fills else []
    return [*model, *beside(method)]


def beside(method: str) -> list[str]:
    """What the caller must give besides the target."""
    entry = METHODS[method]
    given = [need for need in entry.needs if need != "insertions"]
    return [*given, *([] if entry.heads is None else [f"heads ({entry.heads})"])]


def home(method: str) -> str:
    """The file that makes a method what it is: that of its seats which the fewest methods share."""
    seats = _seats(METHODS[method])
    counts = collections.Counter(seat for entry in METHODS.values() for seat in _seats(entry))
    return f"jaxdecode/{min(seats, key=lambda seat: counts[seat])}.py"


def _seats(entry: Entry) -> list[str]:
    """The files of a method, without their endings; those of its proposal first."""
    if entry.policy:
        return [f"search/{entry.policy}"]
    if entry.continuous:
        return [f"continuous/{entry.continuous}"]
    rule = f"commits/{entry.commit}" if entry.fills else f"verifiers/{entry.verifier}"
    seats = (f"drafters/{entry.drafter}", rule, f"verifiers/{entry.verifier}")
    return list(dict.fromkeys(seats))


def explain(method: str) -> str:
    """What a method is, in a few lines made from its registry entry and its options' defaults."""
    entry = resolve.entry_of(method)
    _, choice = resolve.split(method, {})
    own = {}
    for config in choice.configs:
        own |= dataclasses.asdict(config)
    options = ", ".join(f"{name}={value!r}" for name, value in own.items())
    return (
        f"{method}: {entry.summary}\n  file {home(method)}\n"
        f"  {_seated(entry)}\n  exactness {entry.level} against {entry.reference}; "
        f"source {entry.source}; {entry.tier}\n  "
        f"needs {', '.join(needs_of(method)) or 'nothing but the target'}"
        + (f"\n  refuses {', '.join(entry.refuses)}" if entry.refuses else "")
        + (f"\n  options {options}" if options else "")
    )


def _seated(entry: Entry) -> str:
    """Who sits in which seat, in words."""
    if entry.continuous:
        return f"a loop of its own over vectors: continuous {entry.continuous}"
    return (
        f"drafter {entry.drafter}, tree {entry.tree}, verifier {entry.verifier}, "
        f"commit {entry.commit}, cache {entry.cache}"
        + (f", policy {entry.policy}" if entry.policy else "")
    )


def markdown() -> str:
    """The table of all methods, as docs/methods.md has it."""
    lines = [
        "| method | what it does | exactness | seats | needs | source |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in METHODS.items():
        checks = entry.commit if entry.fills else entry.verifier
        seats = f"{entry.drafter}, {entry.tree}, {checks}"
        if entry.policy:
            seats += f"; policy {entry.policy}"
        if entry.continuous:
            seats = f"continuous {entry.continuous}"
        needs = ", ".join(needs_of(name)) or "-"
        level = f"{entry.level} ({entry.tier})"
        cells = (f"`{name}`", entry.summary, level, seats, needs, entry.source)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
