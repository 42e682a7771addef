"""Metrics of a run: lines of JSON, curves, and TensorBoard or wandb if asked for."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxdecode.convert.atomic import atomic_file
from jaxdecode.errors import InputError
from jaxdecode.training.config import Logging

FILE, CURVES = "metrics.jsonl", "curves.png"


class Writer(Protocol):
    """Where metrics go."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Takes one line."""

    def close(self) -> None:
        """Ends."""


class Lines:
    """`metrics.jsonl`: a line per entry, there as soon as it is written."""

    def __init__(self, path: Path):
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class _TensorBoard:
    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise _missing("tensorboard") from error
        self._writer = SummaryWriter(str(folder))

    def write(self, line: Mapping[str, Any]) -> None:
        for name, value in _numbers(line).items():
            self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise _missing("wandb") from error
        # The folder's name, so that a resumed run goes on in the same place.
        self._run = wandb.init(
            project=project,
            id=folder.name,
            dir=str(folder),
            config=dict(config),
            resume="allow",
        )

    def write(self, line: Mapping[str, Any]) -> None:
        self._run.log(_numbers(line), step=line["step"])

    def close(self) -> None:
        self._run.finish()


@contextlib.contextmanager
def opened(folder: Path, config: Logging, settings: Mapping[str, Any]) -> Iterator[list[Writer]]:
    """All writers of a run.

    Raises:
        InputError: a writer's package is not installed.
    """
    with contextlib.ExitStack() as stack:
        writers: list[Writer] = []
        for name in config.writers:
            made = (
                _TensorBoard(folder / "tensorboard")
                if name == "tensorboard"
                else _Wandb(folder, config.project, settings)
            )
            stack.callback(made.close)
            writers.append(made)
        lines = Lines(folder / FILE)
        stack.callback(lines.close)
        yield [lines, *writers]


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run; a last one that a kill cut short is left out."""
    path = folder / FILE
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def rewind(folder: Path, step: int) -> None:
    """Drops what was written after a step: a resumed run writes it again."""
    kept = [line for line in read(folder) if line["step"] <= step]
    with atomic_file(folder / FILE) as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)


def plot(folder: Path, title: str, baseline_method: str) -> Path | None:
    """Draws `curves.png`: loss and acceptance by step; None if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    lines = read(folder)
    losses = [(x["step"], x["loss"]) for x in lines if "loss" in x]
    lengths = [(x["step"], x["acceptance_length"]) for x in lines if "acceptance_length" in x]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curve(left, losses, "loss", "tab:blue")
    _curve(right, lengths, "tokens per step, held-out", "tab:green", marker="o")
    baseline = [x["baseline_length"] for x in lines if "baseline_length" in x]
    if baseline:
        right.axhline(
            baseline[-1], color="gray", linestyle="--", label=f"{baseline_method}, no training"
        )
        right.legend(frameon=False)
    figure.suptitle(title)
    path = folder / CURVES
    figure.savefig(path, dpi=120)
    return path


def _curve(
    axes: Any, points: Sequence[tuple[int, float]], name: str, color: str, **style: Any
) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), color=color, **style)
    axes.set_xlabel("step")
    axes.set_ylabel(name)
    axes.grid(alpha=0.3)


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def _missing(name: str) -> InputError:
    return InputError(
        f"log.writers asks for {name}, which is not installed: pip install 'jaxdecode[{name}]'."
    )
