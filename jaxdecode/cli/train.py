"""`jaxdecode train`: trains a drafter for a model, as a config says."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from jaxdecode.cli import sharing
from jaxdecode.cli.common import (
    AcceptTerms,
    AsJson,
    Debug,
    Flag,
    Overwrite,
    note,
    print_json,
    show_progress,
    use_compile_cache,
)
from jaxdecode.cli.sharing import Coordinator, JoinTimeout, Processes, ProcessId

if TYPE_CHECKING:
    from jaxdecode.training.config import TrainConfig
    from jaxdecode.training.run import Run

# As the shell counts commands that SIGTERM ended: 128 + 15.
TERMINATED = 143
INTERRUPTED = 130


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Train a drafter (or an early exit, a draft model, ...) for a model.

    Metrics go to metrics.jsonl and curves.png in the run's folder, which --heads of the other
    commands takes. SIGTERM and Ctrl-C save and end; --resume goes on, as if never stopped.
    """

    config: Annotated[Positional[str], arg(metavar="FILE.yaml", help="What to train.")]
    set: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="KEY=VALUE")] = ()
    """Replace a setting of the file, such as optimizer.lr=3e-4; repeat for more."""
    out: Annotated[str | None, arg(metavar="FOLDER", constructor=str, help_behavior_hint="")] = None
    """Folder of the run; by default runs/ and the name of the file."""
    resume: Flag = False
    """Go on with the run in the folder."""
    overwrite: Overwrite = False
    processes: Processes = None
    process_id: ProcessId = None
    coordinator: Coordinator = None
    join_timeout: JoinTimeout = None
    progress: Flag = False
    """Show progress even if stderr is no terminal."""
    json: AsJson = False
    accept_terms: AcceptTerms = False
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        from jaxdecode.training import config as configs

        # Before JAX starts: a typing error should not cost a minute.
        config = configs.read(self.config, self.set)
        sharing.join(self, {"the config": str(configs.to_dict(config))})
        use_compile_cache()
        from jaxdecode.training import run

        shown = show_progress(self.progress)
        with _bar(config, shown) as watch, _plain_warnings():
            made = run.train(
                config,
                out=self.out or run.default_folder(self.config),
                resume=self.resume,
                overwrite=self.overwrite,
                accept_terms=self.accept_terms,
                progress=shown,
                watch=watch,
            )
        self._report(config, made)
        return {"SIGTERM": TERMINATED, "SIGINT": INTERRUPTED}.get(made.stopped, 0)

    def _report(self, config: "TrainConfig", made: "Run") -> None:
        by_loss = config.line.measure == "loss"
        if self.json:
            content = {
                "stopped": made.stopped,
                "checkpoint": str(made.checkpoint),
                ("held_out_loss" if by_loss else "acceptance_length"): made.best,
                "baseline": config.measure.baseline,
                "baseline_length": made.baseline,
                "metrics": str(made.folder / "metrics.jsonl"),
            }
            print_json(content)
            return
        if made.stopped.startswith("SIG"):
            note(f"stopped by {made.stopped}; the same command with --resume goes on")
            return
        if made.best is not None and by_loss:
            note(f"loss on held-out texts: {made.best:.4f} per token")
        elif made.best is not None:
            note(
                f"{config.line.method}: {made.best:.2f} tokens per step on held-out prompts; "
                f"{config.measure.baseline} without training: {made.baseline:.2f}"
            )
        heads = "" if config.line.heads is None else f" --heads {made.folder}"
        draft = f" --draft {made.checkpoint}" if config.line.draft else ""
        own = made.folder / "model"
        model = own if own.is_dir() and not draft else config.target
        note(
            f"try: jaxdecode generate --model {model} --method {config.line.method}{heads}{draft} "
            '--message "..."'
        )


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as lines on stderr, without the place in the code."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *rest: note(f"warning: {message}")
        yield


@contextlib.contextmanager
def _bar(config: "TrainConfig", shown: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A bar of steps with loss and acceptance; without one, a line for every measurement."""
    if not shown:
        yield _note_line
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from jaxdecode.cli.bars import Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[seen]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, speed_estimate_period=600.0) as bar:
        task = bar.add_task(config.recipe, total=config.steps, seen="")
        seen: dict[str, str] = {}

        def watch(line: Mapping[str, Any]) -> None:
            if "features" in line:
                there = line["features"] == line["of"]
                told = "" if there else f"features: {line['features']} of {line['of']} batches"
                bar.update(task, seen=told)
                return
            if "loss" in line:
                seen["loss"] = f"loss {line['loss']:.3f}"
            if "acceptance_length" in line:
                seen["measured"] = f"{line['acceptance_length']:.2f} tokens per step"
            if "held_out_loss" in line:
                seen["measured"] = f"held-out {line['held_out_loss']:.3f}"
            bar.update(task, completed=line["step"], seen=", ".join(seen.values()))

        yield watch


def _note_line(line: Mapping[str, Any]) -> None:
    if line.get("features") == 0:
        note(f"computing the target's features of {line['of']} batches of texts")
    elif "acceptance_length" in line or "held_out_loss" in line:
        note(_measured(line))


def _measured(line: Mapping[str, Any]) -> str:
    if "held_out_loss" in line:
        return f"step {line['step']}: loss {line['held_out_loss']:.4f} on held-out texts"
    text = f"step {line['step']}: {line['acceptance_length']:.3f} tokens per step"
    if line.get("differing"):
        text += f"; texts that differ from plain decoding: {line['differing']}"
    return text
