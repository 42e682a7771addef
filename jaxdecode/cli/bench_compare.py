"""`jaxdecode bench compare`: two results of `bench` side by side."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from jaxdecode.cli.common import AsJson, Debug, note, print_json, print_table
from jaxdecode.errors import InputError

_KEY = ("batch_size", "temperature", "category", "line")
# What times depend on; where these differ, ratios say as much of the machines as of the code.
_SAME = ("model", "machine", "prompts")
_OF_CODE = ("jaxdecode",)
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchCompare:
    """Compare two files of `bench --json`: what became faster, and by how much.

    A change counts only where the intervals of the two speed-ups over their own baselines are
    apart: tokens/s of two runs also differ by the machine's mood.
    """

    before: Positional[Annotated[str, arg(metavar="A.json")]]
    """The earlier result."""
    after: Positional[Annotated[str, arg(metavar="B.json")]]
    """The later one."""
    json: AsJson = False
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        before, after = (_read(name) for name in (self.before, self.after))
        rows = compare(before, after)
        if not rows:
            raise InputError(f"{self.before} and {self.after} have no method in common.")
        changed = differences(before, after)
        if self.json:
            print_json({"different": changed, "rows": rows})
            return 0
        for line in changed:
            note(f"not the same in both: {line}")
        header = (*_KEY[:3], "method", "tokens/s A", "B", "B / A", "speed-up A", "B", "change")
        print_table(header, [_cells(row) for row in rows])
        return 0


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Row]:
    """Rows that both have, in the order of the first.

    tokens_per_second, speedup, speedup_range: of both, before and after.
    ratio: of the tokens per second.
    change: "faster" or "slower" if the intervals of the speed-ups are apart, else "-".
    """
    later = {_key(row): row for row in after["summary"]}
    found = []
    for row in before["summary"]:
        if (other := later.get(_key(row))) is None:
            continue
        names = ("tokens_per_second", "speedup", "speedup_range")
        pairs = {name: [row[name], other[name]] for name in names}
        ratio = other["tokens_per_second"] / row["tokens_per_second"]
        ranges = pairs["speedup_range"]
        key = dict(zip(_KEY, _key(row), strict=True))
        found.append({**key, **pairs, "ratio": ratio, "change": _change(*ranges)})
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What else than the code differs between the two runs, in words."""
    found = []
    for name in _SAME:
        old, new = before[name], after[name]
        if isinstance(old, dict):
            keys = [k for k in {**old, **new} if old.get(k) != new.get(k) and k not in _OF_CODE]
            found += [f"{name} {k}: {old.get(k)} and {new.get(k)}" for k in keys]
        elif old != new:
            shown = (old, new) if isinstance(old, str) else (f"{len(old)}", f"{len(new)}, others")
            found.append(f"{name}: {shown[0]} and {shown[1]}")
    return found


def _change(before: list[float] | None, after: list[float] | None) -> str:
    if before is None or after is None:
        return "differs"
    if after[0] > before[1]:
        return "faster"
    return "slower" if after[1] < before[0] else "-"


def _key(row: Row) -> tuple:
    return tuple(row[name] for name in _KEY)


def _cells(row: Row) -> list[str]:
    rates = [f"{rate:.1f}" for rate in row["tokens_per_second"]]
    speedups = [
        "differs" if ratio is None else f"{ratio:.2f}x ({span[0]:.2f}-{span[1]:.2f})"
        for ratio, span in zip(row["speedup"], row["speedup_range"], strict=True)
    ]
    key = [f"{row[name]:g}" if name == "temperature" else str(row[name]) for name in _KEY]
    return [*key, *rates, f"{row['ratio']:.2f}", *speedups, row["change"]]


def _read(name: str) -> dict[str, Any]:
    path = Path(name).expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        wanted = {"summary", *_SAME}
        # What was measured before intervals were kept has none.
        if not wanted <= set(content) or "speedup_range" not in content["summary"][0]:
            raise ValueError("no file of this version of `bench --json`")
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise InputError(f"{name}: cannot be compared ({error}).") from error
    return content
