"""From the records of `bench.measure` to the numbers of its tables."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxdecode.evals.bench import DIFFERS, TIE

OVERALL = "overall"


def summarize(
    records: Sequence[dict[str, Any]], labels: Sequence[str], baseline: str = "ar"
) -> list[dict[str, Any]]:
    """One dict per batch size, temperature, category and line, `overall` after the categories.

    tokens_per_second: new tokens over the sum of the batches' median times, prefill included.
    speedup: tokens_per_second over the baseline's on the same prompts. Where tokens are equal this
        is the ratio of the summed times. None for a line whose tokens differ anywhere.
    acceptance_length: tokens over nfe, both summed over prompts and repeats.
    nfe, tokens_forwarded: calls of the model, and tokens that went into it, per repeat.
    differ, ties: prompts whose tokens are not the reference's, and those that part at a near tie;
        None where nothing is promised.
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
                found.append({**row, "line": label, **numbers, "speedup": speedup})
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
    tokens, nfe = (sum(sum(row[key]) for row in rows) for key in ("tokens", "nfe"))
    checked = [row for row in rows if row["equal"] is not None]
    return {
        "prompts": len(rows),
        "tokens": sum(row["tokens"][0] for row in rows),
        "seconds": _seconds(records, label),
        "tokens_per_second": _rate(records, label),
        "acceptance_length": tokens / max(nfe, 1),
        "nfe": sum(statistics.median(row["nfe"]) for row in rows),
        "tokens_forwarded": sum(statistics.median(row["forwarded"]) for row in rows),
        "differ": _count(checked, DIFFERS) if checked else None,
        "ties": _count(checked, TIE) if checked else None,
    }


def _rate(records: Sequence[dict[str, Any]], label: str) -> float:
    tokens = sum(statistics.median(row["tokens"]) for row in _rows(records, label))
    return tokens / _seconds(records, label)


def _seconds(records: Iterable[dict[str, Any]], label: str) -> float:
    return sum(statistics.median(record["lines"][label]["seconds"]) for record in records)


def _rows(records: Iterable[dict[str, Any]], label: str) -> Iterable[dict[str, Any]]:
    return [row for record in records for row in record["lines"][label]["rows"]]


def _count(rows: Iterable[dict[str, Any]], status: str) -> int:
    return sum(row["equal"] == status for row in rows)
