"""`jaxdecode bench`: methods against the plain one, timed in turn, with tokens compared."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from tyro.conf import UseAppendAction, arg

from jaxdecode import checks
from jaxdecode.cli import bench_suite, sharing
from jaxdecode.cli.bench_table import markdown, print_tables
from jaxdecode.cli.common import (
    AcceptTerms,
    Attention,
    Debug,
    Flag,
    MeshText,
    Overwrite,
    note,
    print_json,
    show_progress,
    use_compile_cache,
)
from jaxdecode.cli.output import check_output, open_output, run_bar
from jaxdecode.cli.prompts import PromptLine, read_suite, tokenize_all
from jaxdecode.errors import InputError
from jaxdecode.paths import config_dir

if TYPE_CHECKING:
    from jaxdecode.api import LanguageModel
    from jaxdecode.convert.heads import Heads
    from jaxdecode.evals.bench import Case, Given, Plan
    from jaxdecode.models.config import ModelConfig

T = TypeVar("T")
_Optional = Annotated[str | None, arg(metavar="FILE", constructor=str, help_behavior_hint="")]
SMALL = "small"
_DIFFERS = 1
_INTERRUPTED = 130


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Time methods against the plain one on the same prompts, and compare their tokens.

    The plain one is ar, or llada for models that fill slots in any order. Exit code 1 if a method
    that promises the tokens of another one gives others.
    """

    model: Annotated[str, arg(metavar="NAME_OR_PATH")]
    """Short name (see `jaxdecode models`), checkpoint folder, .gguf file, or hf:org/name."""
    suite: Annotated[str, arg(metavar="FILE")] = SMALL
    """small (a dozen short prompts that come with us), a JSONL file, or - for stdin: lines as
    `generate --prompts` takes, with an optional "category", or those of Spec-Bench (its first
    turns). For models that fill slots also lists or parallelbench (list tasks, right answers by
    steps; lists:9 for nine items), with --model oracle as one that knows every law; text:FILE
    (held-out text, quality by steps); dija:FILE (prompts with mask tokens in them). These print
    Markdown."""
    methods: Annotated[str, arg(metavar="NAMES")] = "all"
    """Comma-separated: names, each perhaps with options (prompt_lookup:num_draft=4), "all",
    or a level (L0). The plain one is the baseline and always runs."""
    max_new_tokens: int = 128
    """Most new tokens per prompt."""
    quantize: Annotated[str, arg(metavar="SETTINGS", help_behavior_hint="")] = ""
    """With --suite lists or text:FILE: the same of the model with few bits, comma-separated
    (w4g32,w8a8,w4a4:hadamard), or all."""
    num_prompts: int | None = None
    """Take so many prompts, spread over the categories; all by default."""
    batch_size: str = "1"
    """Prompts decoded at once; several, comma-separated, give one table each."""
    temperature: str = "0"
    """0 is greedy; several, comma-separated, give one table each."""
    seed: int = 0
    """Seed of every prompt that brings none."""
    engine: Annotated[str, arg(metavar="NAMES", help_behavior_hint="")] = ""
    """Peers on the same prompts in the same run, comma-separated: transformers, llama-cpp (from a
    .gguf), each perhaps with options of its own (transformers:prompt_lookup_num_tokens=10)."""
    peer_python: Annotated[str | None, arg(metavar="PYTHON", help_behavior_hint="")] = None
    """Python that the peers are installed for, if it is not this one."""
    repeats: int = 3
    """Runs of every method per batch of prompts; times are medians over them."""
    ignore_eos: Flag = False
    """Go on after the model's own end tokens, so that every prompt gives as many tokens."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the weights; auto is float32 on CPU, else bfloat16."""
    mesh: MeshText = None
    attention: Attention = "auto"
    layers: Literal["auto", "list", "stacked"] = "auto"
    """stacked compiles many times faster and runs slower on CPU: for --check-only."""
    draft: Annotated[str | None, arg(metavar="NAME_OR_PATH", help_behavior_hint="")] = None
    """Draft model of the methods that need one."""
    heads: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="FOLDER")] = ()
    """Trained heads of the methods that need some; repeat for other kinds."""
    tie_gap: float | None = None
    """Gap of the two best scores below which a difference is a near tie: 1e-4 in float32 and 0.25
    in bfloat16 by default."""
    remember: Flag = False
    """Let methods use what they learned from the earlier prompts (each repeat on its own)."""
    check_only: Flag = False
    """Compare tokens and leave times out: one run each, no warm-up."""
    json: _Optional = None
    """Write everything measured to this file, after every batch of prompts; - prints it at the
    end, in place of the tables."""
    markdown: _Optional = None
    """Write the tables as Markdown to this file too."""
    plots: Annotated[str | None, arg(metavar="FOLDER", constructor=str, help_behavior_hint="")] = (
        None
    )
    """Draw speed-ups, accepted tokens and costs into PNG files of this folder (needs the extra
    "plots")."""
    resume: Flag = False
    """Go on with the measurements that are in the --json file."""
    overwrite: Overwrite = False
    progress: Flag = False
    """Show progress even if stderr is no terminal."""
    accept_terms: AcceptTerms = False
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        from jaxdecode.evals import bench, peers

        if bench_suite.is_suite(self.suite):
            return bench_suite.run(self)
        if self.quantize:
            raise InputError("--quantize goes with --suite lists or text:FILE.")
        small = config_dir() / "suites" / "small.jsonl"
        lines = self._sampled(read_suite(str(small) if self.suite == SMALL else self.suite))
        self.check_outputs()
        heads = self._heads()
        # What is wrong whatever the model is shows before a model is fetched.
        bench.check(self._plan(heads), has_draft=self.draft is not None, heads=heads)
        config = self.read_config()
        plan = self._plan(heads, fills=config.denoiser is not None)
        bench.check(plan, has_draft=self.draft is not None, heads=heads, config=config)
        saved = self._saved()
        use_compile_cache()
        lm = self.load_model(self.model)
        draft = None if self.draft is None else self.load_model(self.draft)
        gap = bench.TIE_GAP[lm.dtype.name] if self.tie_gap is None else self.tie_gap
        plan = dataclasses.replace(plan, tie_gap=gap)
        cases = _cases(lm, lines, self.seed)
        with peers.started(plan.peers, lm, self._source(), self.peer_python) as found:
            given = bench.Given(draft, heads, found)
            head = self._head(lm, plan, cases) | {"peers": {k: v.version for k, v in found.items()}}
            records = [] if saved is None else _continued(head, saved, self.json)
            stopped = self._measure(lm, given, plan, cases, head, records)
        return self._report(plan, head, records, len(bench.jobs(plan, cases)), stopped)

    def _sampled(self, lines: list[PromptLine]) -> list[PromptLine]:
        from jaxdecode.evals import bench

        if self.num_prompts is None:
            return lines
        checks.integer("--num-prompts", self.num_prompts, low=1)
        return [lines[i] for i in bench.spread([x.category for x in lines], self.num_prompts)]

    def _heads(self) -> "dict[str, Heads]":
        """What --heads gives, by kind."""
        from jaxdecode.convert.heads import load_heads

        found: dict[str, Heads] = {}
        for folder in self.heads:
            heads = load_heads(folder)
            if heads.spec.kind in found:
                raise InputError(
                    f"--heads {folder}: there are heads of {heads.spec.kind!r} already."
                )
            found[heads.spec.kind] = heads
        return found

    def read_config(self) -> "ModelConfig":
        """What the model is, before its parameters are read."""
        from jaxdecode.convert.open import open_source

        return open_source(self._source()).config

    def _source(self) -> Path:
        from jaxdecode.convert import download

        shown = show_progress(self.progress)
        return download.resolve(self.model, accept_terms=self.accept_terms, progress=shown)

    def check_outputs(self) -> None:
        """Refuses before anything is measured what could not be written after it."""
        from jaxdecode.evals import plots

        if self.plots is not None:
            plots.check()
        if self.markdown is not None:
            check_output(Path(self.markdown).expanduser(), self.overwrite, "--markdown")

    def _plan(self, heads: "dict[str, Heads]", fills: bool = False) -> "Plan":
        from jaxdecode.evals import bench, peers

        sizes = numbers("--batch-size", self.batch_size, int)
        for size in sizes:
            checks.integer("--batch-size", size, low=1)
        checks.integer("--repeats", self.repeats, low=1)
        temperatures = numbers("--temperature", self.temperature, float)
        has_draft = self.draft is not None
        others = peers.parse(self.engine)
        peers.check(others, sizes, temperatures)
        lines = bench.parse_lines(
            self.methods, has_draft=has_draft, heads=heads, temperatures=temperatures, fills=fills
        )
        return bench.Plan(
            lines=lines,
            max_new_tokens=self.max_new_tokens,
            batch_sizes=sizes,
            temperatures=temperatures,
            repeats=1 if self.check_only else self.repeats,
            ignore_eos=self.ignore_eos,
            remember=self.remember,
            timed=not self.check_only,
            baseline=bench.baseline_of(fills),
            peers=others,
        )

    def _saved(self) -> dict[str, Any] | None:
        if self.resume and self.remember:
            raise InputError("--resume cannot go on with --remember: what was learned is gone.")
        if self.json in (None, "-"):
            if self.resume:
                raise InputError("--resume goes on with a file: give --json FILE.")
            return None
        path = Path(self.json).expanduser()
        if not (self.resume and path.exists()):
            check_output(path, self.overwrite, "--json")
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"--resume: {path} is not a result of `bench` ({error}).") from error

    def load_model(self, name: str) -> "LanguageModel":
        """Loads a model as the options say."""
        from jaxdecode import api

        return api.load(
            name,
            dtype=None if self.dtype == "auto" else self.dtype,
            accept_terms=self.accept_terms,
            layers=self.layers,
            mesh=self.mesh,
            attention=self.attention,
            progress=show_progress(self.progress),
        )

    def _head(self, lm: "LanguageModel", plan: "Plan", cases: list["Case"]) -> dict[str, Any]:
        """What a saved file must agree with to be gone on with."""
        from jaxdecode.evals import machine

        fields = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
        prompts = [
            {
                "where": Path(case.where).name,
                "category": case.category,
                "num_tokens": len(case.tokens),
                "seed": case.seed,
                "digest": hashlib.blake2b(repr(case.tokens).encode(), digest_size=8).hexdigest(),
            }
            for case in cases
        ]
        head = {
            "model": self.model,
            "draft": self.draft,
            "heads": [sharing.heads_setting(folder) for folder in self.heads],
            "layers": self.layers,
            "mesh": self.mesh,
            "attention": self.attention,
            "machine": machine.describe(lm),
            "plan": fields | {k: [x.label for x in fields[k]] for k in ("lines", "peers")},
            "prompts": prompts,
        }
        return json.loads(json.dumps(head))

    def _measure(
        self,
        lm: "LanguageModel",
        given: "Given",
        plan: "Plan",
        cases: list["Case"],
        head: dict[str, Any],
        records: list[dict[str, Any]],
    ) -> bool:
        """Adds to the records and saves them; returns whether Ctrl-C ended it early."""
        from jaxdecode.evals import bench

        self._save(plan, head, records, complete=False)
        finished = frozenset((r["batch_size"], r["temperature"], r["index"]) for r in records)
        left = len(bench.jobs(plan, cases)) - len(finished)
        shown = show_progress(self.progress)
        try:
            with run_bar("measuring", bench.num_ticks(plan, cases, finished), shown) as tick:
                found = bench.measure(lm, plan, cases, given=given, finished=finished, tick=tick)
                for record in found:
                    records.append(record)
                    self._save(plan, head, records, complete=len(records) == left + len(finished))
        except KeyboardInterrupt:
            if not records:
                raise
            return True
        return False

    def _save(
        self, plan: "Plan", head: dict[str, Any], records: list[dict[str, Any]], *, complete: bool
    ) -> None:
        if self.json not in (None, "-"):
            with open_output(self.json, overwrite=True, option="--json") as file:
                json.dump(_document(plan, head, records, complete), file)

    def _report(
        self,
        plan: "Plan",
        head: dict[str, Any],
        records: list[dict[str, Any]],
        total: int,
        stopped: bool,
    ) -> int:
        document = _document(plan, head, records, not stopped)
        if self.json == "-":
            print_json(document, indent=None)
        else:
            print_tables(document)
        self._draw(document)
        if plan.timed and (late := sum(record["compiled"] for record in records)):
            note(f"{late} programs were compiled while times were taken, which are too long by it")
        if stopped:
            more = "; --resume goes on" if self.json not in (None, "-") else ""
            note(f"interrupted: {len(records)} of {total} batches were measured{more}")
            return _INTERRUPTED
        return _DIFFERS if any(line["differ"] for line in document["compared"]) else 0

    def _draw(self, document: dict[str, Any]) -> None:
        """The other forms of the result that were asked for."""
        if self.markdown is not None:
            with open_output(self.markdown, overwrite=self.overwrite, option="--markdown") as file:
                file.write(markdown(document))
        if self.plots is not None:
            from jaxdecode.evals import plots

            drawn = plots.draw(document, Path(self.plots).expanduser())
            note(f"drew {', '.join(map(str, drawn))}")


def _cases(lm: "LanguageModel", lines: list[PromptLine], seed: int) -> list["Case"]:
    from jaxdecode.evals.bench import Case

    tokens = tokenize_all(lm, lines)
    seeds = [seed if line.seed is None else line.seed for line in lines]
    return [
        Case(line.where, line.category, row, one)
        for line, row, one in zip(lines, tokens, seeds, strict=True)
    ]


def _document(
    plan: "Plan", head: dict[str, Any], records: list[dict[str, Any]], complete: bool
) -> dict[str, Any]:
    from jaxdecode.evals import bench, summary

    labels = [line.label for line in plan.runners]
    references = {line.label: bench.reference(line).label for line in plan.lines}
    return head | {
        "complete": complete,
        "summary": summary.summarize(records, labels, plan.baseline),
        "compared": summary.compared(records, references),
        "records": records,
    }


def _continued(
    head: dict[str, Any], saved: dict[str, Any], name: str | None
) -> list[dict[str, Any]]:
    """The records of a saved file, if it holds the same measurement."""
    for key, value in head.items():
        if not isinstance(saved, dict) or saved.get(key) != value:
            raise InputError(
                f"--resume: {name} was made with another {key}; use the same command on the same "
                "machine, or another --json file."
            )
    return saved["records"]


def numbers(option: str, text: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    """Numbers separated by commas, each once."""
    try:
        return tuple(dict.fromkeys(kind(part) for part in text.split(",")))
    except ValueError as error:
        raise InputError(f"{option} {text}: expected numbers separated by commas.") from error
