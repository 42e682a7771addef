"""A run from beginning to end: steps, measurements, checkpoints, and what is left at the end."""

import contextlib
import dataclasses
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdecode.errors import InputError, JaxdecodeError
from jaxdecode.training import acceptance, export, fresh, held_out, metrics, setup, step
from jaxdecode.training import config as configs
from jaxdecode.training import folder as folders
from jaxdecode.training.checkpoints import Checkpoints
from jaxdecode.training.config import TrainConfig
from jaxdecode.training.setup import Watch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a run left.

    Attributes:
        folder: of the run.
        checkpoint: what decoding takes: `heads=` or a model for `load`.
        metrics: lines of `metrics.jsonl`.
        stopped: why it ended: "finished", "early" (no better acceptance), "time" (the config's
            minutes are over), or the signal's name.
        best: greatest acceptance length that was measured, or smallest loss on held-out texts if
            the recipe is measured by that; None if nothing was.
        baseline: that of the method without training; None if nothing was measured.
    """

    folder: Path
    checkpoint: Path
    metrics: Sequence[Mapping[str, Any]]
    stopped: str
    best: float | None
    baseline: float | None


@dataclasses.dataclass
class _Seen:
    """What the run has measured so far; saved with every checkpoint."""

    best: float | None = None
    since: int = 0
    baseline: float | None = None


def train(
    config: str | Path | Mapping[str, Any] | TrainConfig,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    accept_terms: bool = False,
    progress: bool = False,
    watch: Watch | None = None,
) -> Run:
    """Trains what the config says.

    A run that was killed goes on with `resume` as if nothing had happened: parameters, optimizer,
    order of the data and noise are those of the uninterrupted run, bit by bit.

    Args:
        config: YAML file, its content as a mapping, or a `TrainConfig`.
        out: folder of the run; by default `runs/<name of the file>`.
        overrides: `optimizer.lr=3e-4` each, over what the file says.
        resume: go on with the run in the folder, if there is one.
        overwrite: replace a run in the folder.
        accept_terms: of a target that has some.
        progress: show progress bars of downloads on stderr.
        watch: called with every line of metrics; before the first, where `cache` is set, with how
            many batches of texts have their features.

    Raises:
        InputError: a setting, the data or the folder cannot be used; named.
        CheckpointError: the disk is full, or a checkpoint is damaged.
        JaxdecodeError: the loss is not finite.
    """
    read, place = _read(config, overrides), _folder(config, out)
    folders.check(place, read, resume=resume, overwrite=overwrite)
    with fresh.opened(read) as real:
        told = watch or (lambda line: None)
        built = setup.build(real, progress=progress, accept_terms=accept_terms, watch=told)
        # Only now: a setting that cannot be used leaves no folder behind.
        folders.prepare(place, read, resume=resume)
        with folders.claim(place), _stop_flag() as stop:
            return _Trainer(real, place, built, told).run(stop)


def _read(config: Any, overrides: Sequence[str]) -> TrainConfig:
    if isinstance(config, str | Path):
        return configs.read(config, overrides)
    if overrides:
        raise InputError("overrides are for files; change the mapping instead.")
    return config if isinstance(config, TrainConfig) else configs.of(config)


def _folder(config: Any, out: str | Path | None) -> Path:
    if out is not None:
        return Path(out).expanduser()
    if not isinstance(config, str | Path):
        raise InputError("out is missing: the folder of the run.")
    return default_folder(config)


def default_folder(config: str | Path) -> Path:
    """Folder of a run of this file, if no other is given."""
    return Path("runs") / Path(config).stem


class _Trainer:
    """The state of a run on its way."""

    def __init__(self, config: TrainConfig, folder: Path, built: setup.Setup, watch: Watch):
        if config.minutes and jax.process_count() > 1:
            raise InputError(
                f"minutes={config.minutes:g} is for one process, since clocks differ; set steps."
            )
        self.config, self.folder, self.built, self.watch = config, folder, built, watch
        self.seen = _Seen()
        self.key = jax.random.key(config.seed)
        self.step = setup.compiled(built, built.lm.dtype, config.steps)
        self.schedule = step.schedule_of(config.optimizer, config.steps)
        # Metrics of steps since the last line.
        self.pending: list[dict[str, Any]] = []
        texts = built.loader.held_out
        self.by_loss = config.line.measure == "loss"
        if self.by_loss:
            judge = built.objective.judge or built.objective.loss
            rows = config.batch_size // config.micro_batches
            kept = texts[: config.measure.num_prompts]
            self.losses = held_out.LossExam(judge, kept, rows, config.data)
            texts = ()
        self.exam = acceptance.Exam(built.lm, [text.prompt for text in texts], config.measure)
        self.checkpoints = Checkpoints(folder / folders.STEPS, keep=config.checkpoint.keep)

    def run(self, stop: "_Stop") -> Run:
        """Trains to the end, or until it is stopped."""
        state = self._restore()
        if self.exam.prompts:
            untrained = export.candidate(self.built, state.params)
            self.exam.check(untrained, self.config.line.method, self.config.measure.options)
        with contextlib.ExitStack() as stack:
            stack.callback(self.checkpoints.close)
            self.writers: list[metrics.Writer] = []
            if jax.process_index() == 0:
                settings = configs.to_dict(self.config)
                opened = metrics.opened(self.folder, self.config.log, settings)
                self.writers = stack.enter_context(opened)
            state, why = self._steps(state, stop)
            if why in ("finished", "early", "time"):
                self._finish(state)
            if why == "time":
                self._tell_rate(int(state.step))
            self.checkpoints.wait()
        if jax.process_index() == 0:
            title = f"{self.config.recipe} for {export.name_of(self.built.lm)}"
            metrics.plot(self.folder, title, self.config.measure.baseline)
        made = (export.MODEL, export.HEADS_FOLDER)[self.config.line.heads is not None]
        return Run(
            folder=self.folder,
            checkpoint=self.folder / made,
            metrics=metrics.read(self.folder),
            stopped=why,
            best=self.seen.best,
            baseline=self.seen.baseline,
        )

    def _restore(self) -> step.State:
        state = setup.first_state(self.built)
        if self.checkpoints.latest() is None:
            rewound = 0
        else:
            state, place = self.checkpoints.restore(state)
            self.built.loader.restore(place["data"].encode())
            self.seen, self.pending = _Seen(**place["seen"]), place["pending"]
            rewound = int(state.step)
        if jax.process_index() == 0:
            metrics.rewind(self.folder, rewound)
        return state

    def _steps(self, state: step.State, stop: "_Stop") -> tuple[step.State, str]:
        """Steps until the end; returns the state, and why it is the last."""
        config, done = self.config, int(state.step)
        every = config.measure.every
        begin = since = time.perf_counter()
        why = "finished" if done == config.steps else "early" if self._stagnates() else None
        while why is None:
            batch = setup.to_devices(next(self.built.loader), self.built.mesh, config.batch_size)
            state, found = self.step(
                state, self.built.parts.held, self.built.lm.params, batch, self.key
            )
            done += 1
            # One step ahead of the devices, no more: a signal would wait for all that are queued.
            jax.block_until_ready(self.pending[-1:])
            self.pending.append(found)
            if done == config.steps:
                why = "finished"
            elif config.minutes and time.perf_counter() - begin > 60 * config.minutes:
                why = "time"
            if done % config.log.every == 0 or why:
                self._log(done, since)
                since = time.perf_counter()
            if (why or (every and done % every == 0)) and self._is_measured():
                self._measure(done, state)
                since = time.perf_counter()
                why = why or ("early" if self._stagnates() else None)
            why = why or stop.reached(done)
            if why or done % config.checkpoint.every == 0:
                self._save(done, state)
        return state, why

    def _save(self, done: int, state: step.State) -> None:
        self.pending = _floats(self.pending)
        # What is saved can be gone on with.
        self._check_finite(done)
        place = {
            # A copy: it is written in the background.
            "pending": list(self.pending),
            "data": self.built.loader.state().decode(),
            "seen": dataclasses.asdict(self.seen),
            "seed": self.config.seed,
        }
        self.checkpoints.save(done, state, place)

    def _log(self, done: int, since: float) -> None:
        # Fetching waits for the steps, so the time is taken after it.
        self.pending = _floats(self.pending)
        seconds = time.perf_counter() - since
        self._check_finite(done)
        found, self.pending = self.pending, []
        line = {name: float(np.mean([x[name] for x in found])) for name in found[0]}
        tokens = line.pop("tokens") * len(found)
        line |= {"lr": float(self.schedule(done - 1)), "tokens_per_second": tokens / seconds}
        self._write({"step": done} | line)

    def _check_finite(self, done: int) -> None:
        losses = [line["loss"] for line in self.pending]
        if all(map(math.isfinite, losses)):
            return
        last = self.checkpoints.latest()
        where = "" if last is None else f" The last checkpoint is that of step {last}."
        raise JaxdecodeError(
            f"the loss is not finite within the steps up to {done}; lower optimizer.lr or raise "
            f"optimizer.warmup_steps.{where}"
        )

    def _is_measured(self) -> bool:
        return bool(self.losses.texts if self.by_loss else self.exam.prompts)

    def _measure_loss(self, done: int, state: step.State) -> None:
        params = export.params(self.built, state.params)
        loss = self.losses.measure(params, self.built.lm.params)
        self.seen.since += 1
        if self.seen.best is None or loss < self.seen.best:
            self.seen.best, self.seen.since = loss, 0
            self._export(done, state)
        self._write({"step": done, "held_out_loss": loss})

    def _measure(self, done: int, state: step.State) -> None:
        if self.by_loss:
            self._measure_loss(done, state)
            return
        config, method = self.config.measure, self.config.line.method
        candidate = export.candidate(self.built, state.params)
        line: dict[str, Any] = {"step": done}
        if self.seen.baseline is None:
            # Of the target as it was: what a user has without training.
            plain = acceptance.Candidate(lm=self.built.lm)
            found = self.exam.measure(plain, config.baseline, {})
            self.seen.baseline = found["acceptance_length"]
            line["baseline_length"] = self.seen.baseline
        line |= self.exam.measure(candidate, method, config.options)
        length = line["acceptance_length"]
        self.seen.since += 1
        if self.seen.best is None or length > self.seen.best:
            self.seen.best, self.seen.since = length, 0
            self._export(done, state)
        self._write(line)

    def _stagnates(self) -> bool:
        patience = self.config.measure.patience
        return patience is not None and self.seen.since >= patience

    def _finish(self, state: step.State) -> None:
        """The result, and what is to be said about it."""
        if not self._is_measured():
            self._export(int(state.step), state)
        if not self.exam.prompts:
            return
        best, baseline = self.seen.best, self.seen.baseline
        assert best is not None and baseline is not None
        if best <= baseline:
            warnings.warn(
                f"{self.config.line.method} writes {best:.2f} tokens per step on held-out prompts, "
                f"and {self.config.measure.baseline} without any training {baseline:.2f}: this run "
                "does not help. Train longer or on more data.",
                stacklevel=2,
            )

    def _tell_rate(self, done: int) -> None:
        """A rate that never fell costs more than fewer steps would have, so it is said."""
        config = self.config
        share = float(step.schedule_of(config.optimizer, config.steps)(done)) / config.optimizer.lr
        if share > 2 * config.optimizer.final:
            warnings.warn(
                f"minutes={config.minutes:g} were over at step {done} of {config.steps}, with the "
                f"learning rate at {share:.0%} of optimizer.lr: a new run with steps={done} would "
                "let it fall within that time, which is usually better.",
                stacklevel=2,
            )

    def _export(self, done: int, state: step.State) -> None:
        notes = {"recipe": self.config.recipe, "step": done, "acceptance_length": self.seen.best}
        export.save(self.built, state.params, self.folder, str(self.config.target), notes)

    def _write(self, line: Mapping[str, Any]) -> None:
        for writer in self.writers:
            writer.write(line)
        self.watch(line)


def _floats(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in line.items()} for line in jax.device_get(lines)]


class _Stop:
    """Whether the run was asked to stop."""

    def __init__(self):
        self.signal: signal.Signals | None = None

    def reached(self, done: int) -> str | None:
        """The signal's name, at a step at which all processes see it."""
        if jax.process_count() > 1:
            # JAX catches the signal of any process and agrees with the others on a step.
            return "SIGTERM" if multihost_utils.reached_preemption_sync_point(done) else None
        return None if self.signal is None else self.signal.name


@contextlib.contextmanager
def _stop_flag() -> Iterator[_Stop]:
    """SIGTERM and Ctrl-C end the run after the step it is at; a second one ends it at once."""
    stop, before = _Stop(), {}

    def ask(number: int, frame: Any) -> None:
        del frame
        stop.signal = signal.Signals(number)
        signal.signal(number, before[number])

    alone = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    for number in (signal.SIGTERM, signal.SIGINT) if alone else ():
        before[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
