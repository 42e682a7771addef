"""Pictures of what `bench` measured; needs matplotlib (`jaxdecode[plots]`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdecode.errors import UnsupportedError
from jaxdecode.evals.summary import OVERALL

_WIDTH, _HEIGHT, _DPI = 8.0, 3.8, 120
Rows = Sequence[dict[str, Any]]


def check() -> None:
    """Refuses before anything is measured.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "--plots needs matplotlib: pip install 'jaxdecode[plots]'."
        ) from error


def draw(document: dict[str, Any], folder: Path) -> list[Path]:
    """Draws what a finished `bench` document holds into PNG files; returns their paths.

    speedup: over the baseline by category, with intervals.
    accepted: share of calls that gave at least so many tokens.
    cost: seconds per call against tokens that went into it, one point per line and category.
    All are of the first batch size and temperature.
    """
    first = document["summary"][0]
    section = (first["batch_size"], first["temperature"])
    rows = [r for r in document["summary"] if (r["batch_size"], r["temperature"]) == section]
    machine = document["machine"]
    title = f"{document['model']}, {machine['dtype']}, {machine['cpu']}, batch {section[0]}"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"accepted": _accepted, "cost": _cost}
    if document["plan"]["timed"]:
        pictures = {"speedup": _speedup, **pictures}
    return [_picture(folder / f"{name}.png", title, draw, rows) for name, draw in pictures.items()]


def draw_filling(document: dict[str, Any], folder: Path) -> Path:
    """Draws quality against calls of the model, of a suite for models that fill slots.

    Quality is the share of right lists, one line per task, or the bits per character of what was
    written (lower is likelier text), with the held-out text as a level.
    """
    folder.mkdir(parents=True, exist_ok=True)
    machine = document["machine"]
    title = f"{document['model']}, {document['suite']}, {machine['dtype']}"
    of_lists = "task" in document["rows"][0]
    draw = _accuracy if of_lists else _bits
    return _picture(folder / "quality.png", title, draw, document["rows"])


def _accuracy(axes: Any, rows: Rows) -> None:
    for task in dict.fromkeys(row["task"] for row in rows):
        points = [(r["nfe"], r["accuracy"]) for r in rows if r["task"] == task and r["nfe"]]
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=task)
    axes.set_xlabel("calls of the model per list")
    axes.set_ylabel("share of right lists")
    axes.set_ylim(-0.03, 1.03)


def _bits(axes: Any, rows: Rows) -> None:
    for row in rows:
        if row.get("nfe"):
            axes.scatter(row["nfe"], row["bits_per_character"], s=24, label=row["trial"])
        else:
            level = row["bits_per_character"]
            axes.axhline(level, color="gray", lw=1, linestyle="--", label=row["trial"])
    axes.set_xlabel("calls of the model per text")
    axes.set_ylabel("bits per character")


def _picture(path: Path, title: str, draw: Any, rows: Rows) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    draw(axes, rows)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.suptitle(title, fontsize="medium")
    # Outside of the axes, where it hides nothing however many lines there are.
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    figure.savefig(path, dpi=_DPI)
    return path


def _lines(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["line"] for row in rows))


def _speedup(axes: Any, rows: Rows) -> None:
    categories = list(dict.fromkeys(row["category"] for row in rows))
    lines = [line for line in _lines(rows)[1:]]
    width = 0.8 / max(len(lines), 1)
    for number, line in enumerate(lines):
        own = {row["category"]: row for row in rows if row["line"] == line and row["speedup"]}
        places = [i + (number - (len(lines) - 1) / 2) * width for i in range(len(categories))]
        shown = [(x, own[c]) for x, c in zip(places, categories, strict=True) if c in own]
        if not shown:
            continue
        heights = [row["speedup"] for _, row in shown]
        low = [max(row["speedup"] - row["speedup_range"][0], 0) for _, row in shown]
        high = [max(row["speedup_range"][1] - row["speedup"], 0) for _, row in shown]
        xs = [x for x, _ in shown]
        style = {"yerr": (low, high), "error_kw": {"lw": 0.8, "alpha": 0.6}}
        axes.bar(xs, heights, width * 0.92, label=line, **style)
    axes.axhline(1.0, color="gray", lw=1, linestyle="--", label=f"{_lines(rows)[0]} = 1")
    names = [category.replace("_", "\n") for category in categories]
    axes.set_xticks(range(len(categories)), names)
    axes.set_ylabel("speed-up")


def _accepted(axes: Any, rows: Rows) -> None:
    for row in rows:
        if row["category"] != OVERALL or not row["per_call"]:
            continue
        counts = {int(number): count for number, count in row["per_call"].items()}
        total, longest = sum(counts.values()), max(counts)
        numbers = range(1, longest + 1)
        shares = [sum(c for n, c in counts.items() if n >= number) / total for number in numbers]
        axes.plot(numbers, shares, marker="o", markersize=3, label=row["line"])
    axes.set_xlabel("tokens")
    axes.set_ylabel("share of calls that gave as many")


def _cost(axes: Any, rows: Rows) -> None:
    for line in _lines(rows):
        own = [row for row in rows if row["line"] == line and row["nfe"]]
        own = [row for row in own if row["category"] != OVERALL]
        if own:
            nodes = [row["tokens_forwarded"] / row["nfe"] for row in own]
            times = [1e3 * row["seconds"] / row["nfe"] for row in own]
            axes.scatter(nodes, times, s=18, label=line)
    axes.set_xlabel("tokens scored per call of the model")
    axes.set_ylabel("ms per call, prefill included")
    axes.set_ylim(bottom=0)
