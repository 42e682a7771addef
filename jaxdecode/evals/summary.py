"""From the records of `bench.measure` to the numbers of its tables."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdecode.evals.bench import DIFFERS, OTHER, TIE

OVERALL = "overall"
# Resamples of an interval, and the share of them that it leaves out on each side.
_RESAMPLES, _TAIL = 1000, 2.5
_CALLS = ("acceptance_length", "nfe", "tokens_forwarded", "per_call")


def summarize(
    records: Sequence[dict[str, Any]], labels: Sequence[str], baseline: str = "ar"
) -> list[dict[str, Any]]:
    """One dict per batch size, temperature, category and line, `overall` after the categories.

    tokens_per_second: new tokens over the sum of the batches' median times, prefill included.
    speedup: tokens_per_second over the baseline's on the same prompts. Where tokens are equal this
        is the ratio of the summed times. None for a line whose tokens differ anywhere.
    speedup_range: where 95 of 100 such measurements would lie, by resampling batches and the
        repeats of each (a bootstrap); batches of other prompts than these count as like them.
    acceptance_length: tokens over nfe, both summed over prompts and repeats.
    nfe, tokens_forwarded: calls of the model, and tokens that went into it, per repeat. These
        three are None for peers.
    per_call: how many calls gave 1, 2, ... tokens; None for peers.
    differ, ties: prompts whose tokens are not the reference's, and those that part at a near tie;
        None where nothing is promised.
    other: prompts whose tokens are others, and nobody promised equal ones: peers.
    """
    wrong = {label for label in labels if _count(_rows(records, label), DIFFERS)}
    found = []
    for section in dict.fromkeys((r["batch_size"], r["temperature"]) for r in records):
        members = [r for r in records if (r["batch_size"], r["temperature"]) == section]
        categories = dict.fromkeys(r["category"] for r in members)
        for category in [*categories, OVERALL]:
            same = [r for r in members if category in (r["category"], OVERALL)]
            base = _rate(same, baseline)
            for label in labels:
                row = {"batch_size": section[0], "temperature": section[1], "category": category}
                numbers = _numbers(same, label)
                speedup = None if label in wrong else numbers["tokens_per_second"] / base
                spread = None if label in wrong else _speedup_range(same, label, baseline)
                ratios = {"speedup": speedup, "speedup_range": spread}
                found.append({**row, "line": label, **numbers, **ratios})
    return found


def compared(
    records: Sequence[dict[str, Any]], references: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Per line: how many prompts and tokens were compared with its reference, and how they fared.

    Args:
        records: what was measured.
        references: the label of the reference of every line; lines that are their own are left out.
    """
    found = []
    for label, other in references.items():
        if label != other:
            rows = [row for row in _rows(records, label) if row["equal"] is not None]
            found.append(
                {
                    "line": label,
                    "reference": other,
                    "prompts": len(rows),
                    "tokens": sum(row["tokens"][0] for row in rows),
                    "differ": _count(rows, DIFFERS),
                    "ties": _count(rows, TIE),
                }
            )
    return found


def _numbers(records: Sequence[dict[str, Any]], label: str) -> dict[str, Any]:
    rows = list(_rows(records, label))
    checked = [row for row in rows if row["equal"] is not None]
    told = all(row["per_call"] is not None for row in rows)
    return {
        "prompts": len(rows),
        "tokens": sum(row["tokens"][0] for row in rows),
        "seconds": _seconds(records, label),
        "tokens_per_second": _rate(records, label),
        **(_calls(rows) if told else dict.fromkeys(_CALLS)),
        "differ": _count(checked, DIFFERS) if checked else None,
        "ties": _count(checked, TIE) if checked else None,
        "other": _count(checked, OTHER) if checked else None,
    }


def _calls(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    tokens, nfe = (sum(sum(row[key]) for row in rows) for key in ("tokens", "nfe"))
    per_call: dict[str, int] = {}
    for row in rows:
        for number, count in row["per_call"].items():
            per_call[number] = per_call.get(number, 0) + count
    found = (
        tokens / max(nfe, 1),
        sum(statistics.median(row["nfe"]) for row in rows),
        sum(statistics.median(row["forwarded"]) for row in rows),
        dict(sorted(per_call.items(), key=lambda item: int(item[0]))),
    )
    return dict(zip(_CALLS, found, strict=True))


def _speedup_range(
    records: Sequence[dict[str, Any]], label: str, baseline: str
) -> tuple[float, float]:
    """The interval of a speed-up; both lines are resampled together, as they were measured."""
    random = np.random.default_rng(0)
    repeats = len(records[0]["lines"][label]["seconds"])
    batches = random.integers(len(records), size=(_RESAMPLES, len(records)))
    drawn = random.integers(repeats, size=(_RESAMPLES, len(records), repeats))

    def rates(name: str) -> np.ndarray:
        seconds = np.asarray([record["lines"][name]["seconds"] for record in records])
        tokens = np.asarray([_median_tokens([record], name) for record in records])
        times = np.median(seconds[batches[:, :, None], drawn], axis=-1).sum(-1)
        return tokens[batches].sum(-1) / times

    low, high = np.percentile(rates(label) / rates(baseline), [_TAIL, 100 - _TAIL])
    return float(low), float(high)


def _rate(records: Sequence[dict[str, Any]], label: str) -> float:
    return _median_tokens(records, label) / _seconds(records, label)


def _median_tokens(records: Iterable[dict[str, Any]], label: str) -> float:
    return sum(statistics.median(row["tokens"]) for row in _rows(records, label))


def _seconds(records: Iterable[dict[str, Any]], label: str) -> float:
    return sum(statistics.median(record["lines"][label]["seconds"]) for record in records)


def _rows(records: Iterable[dict[str, Any]], label: str) -> Iterable[dict[str, Any]]:
    return [row for record in records for row in record["lines"][label]["rows"]]


def _count(rows: Iterable[dict[str, Any]], status: str) -> int:
    return sum(row["equal"] == status for row in rows)
