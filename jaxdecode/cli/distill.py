"""`jaxdecode distill`: prompts in, the model's own answers out, as data to train drafters on."""

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from jaxdecode import checks
from jaxdecode.cli import sharing
from jaxdecode.cli.common import (
    AcceptTerms,
    AsJson,
    Attention,
    Debug,
    Flag,
    MeshText,
    note,
    print_json,
    print_table,
    show_progress,
    use_compile_cache,
)
from jaxdecode.cli.output import rows_bar
from jaxdecode.cli.prompts import PromptLine, read_suite, tokenize_all
from jaxdecode.cli.sharing import Coordinator, JoinTimeout, Processes, ProcessId
from jaxdecode.errors import InputError

if TYPE_CHECKING:
    from jaxdecode.api import LanguageModel
    from jaxdecode.dist.hosts import Process
    from jaxdecode.jobs import Job
    from jaxdecode.training.distill import Prompt

_RESULT_FIELDS = (
    "max_new_tokens",
    "temperature",
    "top_p",
    "n",
    "seed",
    "dtype",
    "held_out",
    "block_length",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill:
    """Let a model answer prompts, and split the answers into training and held-out data.

    The same command goes on where a killed one ended, and several processes can share the work. In
    the end the folder has train.jsonl and held_out.jsonl, which `jaxdecode train` reads, and
    split.json, which counts both by category. A prompt is held out by its hash: equal prompts are
    in one file, and a prompt is in the same file in every run.
    """

    model: Annotated[str, arg(metavar="NAME_OR_PATH")]
    """Short name (see `jaxdecode models`), checkpoint folder, .gguf file, or hf:org/name."""
    prompts: Annotated[str, arg(metavar="FILE", constructor=str)]
    """JSONL file: lines as `generate --prompts` takes, with an optional "category", or those of
    Spec-Bench (its first turns)."""
    out: Annotated[str, arg(metavar="FOLDER", constructor=str)]
    """Folder for the data: new, empty, or begun by the same command."""
    held_out: Annotated[float, arg(metavar="SHARE")] = 0.1
    """Share of the prompts that is kept from training."""
    max_new_tokens: int = 256
    """Most tokens of an answer."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher values draw more freely."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    block_length: int = 0
    """Of a model that fills slots, one per pass: slots that are filled before those after them; 0
    is its own block, or the whole text."""
    n: Annotated[int, arg(aliases=("-n",))] = 1
    """Answers per prompt; they differ only if they are sampled."""
    seed: int = 0
    """Seed of every prompt that brings none."""
    batch_size: int = 8
    """Answers decoded at once; the data does not depend on it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the weights; auto is float32 on CPU, else bfloat16."""
    mesh: MeshText = None
    attention: Attention = "auto"
    processes: Processes = None
    process_id: ProcessId = None
    coordinator: Coordinator = None
    join_timeout: JoinTimeout = None
    json: AsJson = False
    progress: Flag = False
    """Show progress even if stderr is no terminal."""
    accept_terms: AcceptTerms = False
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        from jaxdecode import jobs

        lines = self._lines()
        settings = {name: getattr(self, name) for name in _RESULT_FIELDS} | {
            "model": sharing.model_setting(self.model),
            "prompts": sharing.file_setting(self.prompts),
        }
        here = sharing.meet(self, settings)
        begin = time.perf_counter()
        use_compile_cache()
        job = jobs.begin(
            Path(self.out).expanduser(),
            settings | sharing.environment(),
            num_rows=len(lines),
            batch_rows=max(self.batch_size // self.n, 1),
            lines_per_row=self.n,
            num_processes=here.num_processes,
        )
        with jobs.claim(job, here.process_id):
            parts = jobs.to_do(job, here.process_id, here.num_processes)
            done = self._decode(job, parts, lines, here) if parts else (0, 0)
            complete = jobs.merge(job)
        self._report(job, complete, done, time.perf_counter() - begin)
        return 0

    def _lines(self) -> list[PromptLine]:
        """The prompts; refuses what cannot run before a model is loaded."""
        from jaxdecode import resolve

        if self.prompts == "-":
            raise InputError("--prompts - cannot be resumed; give the prompts as a file.")
        wanted = "a share from 0 to below 1"
        checks.number("--held-out", self.held_out, wanted, lambda x: 0 <= x < 1)
        checks.integer("--block-length", self.block_length, low=0)
        for name in ("n", "batch_size"):
            checks.integer(f"--{name.replace('_', '-')}", getattr(self, name), low=1)
        if self.n > 1 and self.temperature == 0:
            raise InputError(
                "--n asks for several answers, which are all equal; raise --temperature."
            )
        resolve.split("ar", self._options() | {"seed": self.seed})
        return read_suite(self.prompts, "--prompts")

    def _options(self) -> dict[str, Any]:
        names = ("max_new_tokens", "temperature", "top_p")
        return {name: getattr(self, name) for name in names}

    def _filling(self, lm: "LanguageModel") -> dict[str, Any]:
        """How the model decodes, if not one token after the other."""
        if lm.config.denoiser is not None:
            return {"method": "llada", "block_length": self.block_length}
        if self.block_length:
            raise InputError(
                f"--block-length {self.block_length} is for models that fill slots, and "
                f"{self.model!r} writes one token after the other; leave it out."
            )
        return {}

    def _load(self) -> "LanguageModel":
        from jaxdecode import api

        return api.load(
            self.model,
            dtype=None if self.dtype == "auto" else self.dtype,
            accept_terms=self.accept_terms,
            mesh=self.mesh,
            attention=self.attention,
            progress=show_progress(self.progress),
        )

    def _decode(
        self, job: "Job", parts: list[int], lines: list[PromptLine], here: "Process"
    ) -> tuple[int, int]:
        """Decodes parts, and keeps every answer as it ends; returns prompts and new tokens."""
        from jaxdecode.journal import Journal
        from jaxdecode.training import distill

        lm = self._load()
        journal = Journal(job)
        rows = [row for part in parts for row in journal.begin(part)]
        prompts = self._prompts(lm, [lines[row] for row in rows])
        asked = dict(zip(rows, prompts, strict=True))
        options = self._options() | self._filling(lm)
        sizes: dict[str, Any] = {"n": self.n, "batch_size": self.batch_size}

        def on_fixed(why: str) -> None:
            note(f"finished rows wait for their batch: {why}")

        num_tokens = 0
        with rows_bar(sharing.title(here), len(rows), show_progress(self.progress)) as tick:
            for row, found in distill.answers(lm, asked, on_fixed=on_fixed, **sizes, **options):
                journal.add(row, [json.dumps({"index": row} | line) for line in found])
                new = sum(len(line["tokens"]) - line["prompt_length"] for line in found)
                num_tokens += new
                tick(new)
        return len(rows), num_tokens

    def _prompts(self, lm: "LanguageModel", lines: list[PromptLine]) -> "list[Prompt]":
        """The prompts as token ids; as arrays, for lists of millions would fill the memory."""
        import numpy as np

        from jaxdecode.training.distill import Prompt

        return [
            Prompt(
                np.asarray(tokens, np.int32),
                self.seed if line.seed is None else line.seed,
                line.category,
            )
            for line, tokens in zip(lines, tokenize_all(lm, lines), strict=True)
        ]

    def _report(self, job: "Job", complete: bool, done: tuple[int, int], seconds: float) -> None:
        from jaxdecode import jobs
        from jaxdecode.training import distill

        counts = distill.split(job, self.held_out) if complete else None
        train, held_out = map(str, distill.files(job.folder))
        missing = 0 if complete else len(jobs.missing(job))
        if self.json:
            content = {
                "train": train if complete else None,
                "held_out": held_out if complete else None,
                "categories": counts,
                "missing_parts": missing,
                "new_prompts": done[0],
                "new_tokens": done[1],
                "seconds": seconds,
            }
            print_json(content, indent=None)
            return
        note(f"{done[0]} prompts and {done[1]} tokens in {seconds:.1f} s")
        if counts is None:
            note(f"{sharing.remaining(missing, job.num_parts)} and run the same command again")
            return
        total = distill.totals(counts)
        rows = [*counts.items(), ("all", total)]
        print_table(
            ("CATEGORY", "TRAIN", "HELD OUT"),
            [(name, str(row["train"]), str(row["held_out"])) for name, row in rows],
        )
        note(f"complete: {train} and {held_out}")
        for side, number in total.items():
            if not number and (side == "train" or self.held_out):
                note(
                    f"no prompt fell to {side.replace('_', '-')}; give more, or another --held-out"
                )
