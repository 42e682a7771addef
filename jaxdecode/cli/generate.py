"""`jaxdecode generate`: prompts in, text or JSON lines out."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from tyro.conf import UseAppendAction, arg

from jaxdecode.cli import generate_job
from jaxdecode.cli.common import (
    AcceptTerms,
    Attention,
    Debug,
    Flag,
    MeshText,
    Overwrite,
    constraint_options,
    note,
    set_options,
    show_progress,
    use_compile_cache,
)
from jaxdecode.cli.output import check_output, open_output, progress_bar, record
from jaxdecode.cli.prompts import PromptLine, read_prompts, tokenize_all
from jaxdecode.cli.sharing import Coordinator, JoinTimeout, Processes, ProcessId
from jaxdecode.errors import InputError

if TYPE_CHECKING:
    from jaxdecode.api import Generation, LanguageModel
    from jaxdecode.options import Prompt

# `constructor=str`: otherwise the word None on the command line would mean no text.
_Text = Annotated[str | None, arg(metavar="TEXT", constructor=str, help_behavior_hint="")]
_File = Annotated[str | None, arg(metavar="FILE", constructor=str, help_behavior_hint="")]
_Folder = Annotated[str | None, arg(metavar="FOLDER", constructor=str, help_behavior_hint="")]
_OUT_HELP = (
    "Write results to this file, which appears when all are there, instead of stdout. A folder "
    "(ends with /, or exists) takes the JSON lines of --prompts part by part; the same command "
    "goes on where a killed one ended, and several processes can share the work."
)
_ON_ERROR_HELP = (
    "What a line of --prompts that cannot be used does when --out is a folder: record writes an "
    "error in place of its result and goes on, stop checks every line before the first is decoded. "
    "record unless given; without a folder it is always stop."
)
OnError = Annotated[
    Literal["record", "stop"] | None, arg(help_behavior_hint="", help=_ON_ERROR_HELP)
]
_PROMPTS_HELP = (
    'JSONL file, or - for stdin. Each line is an object with one of "prompt": text, '
    '"messages": [{"role": ..., "content": ...}, ...] and "tokens": [...], and perhaps "seed".'
)
_TRACE_HELP = (
    "Write what happened in every step to this file, for `jaxdecode show`. Slower: the host takes "
    "one step at a time."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue prompts with a model.

    Give one of --prompt, --message and --prompts.
    Text goes to stdout and statistics to stderr; with --json, one line per result on stdout, or one
    for all if --out is a folder.
    """

    model: Annotated[str, arg(metavar="NAME_OR_PATH")]
    """Short name (see `jaxdecode models`), checkpoint folder, .gguf file, or hf:org/name."""
    prompt: _Text = None
    """One prompt, continued as it is."""
    message: _Text = None
    """One message of a user, put through the model's chat template."""
    prompts: Annotated[_File, arg(help=_PROMPTS_HELP)] = None
    method: str = "ar"
    """Decoding method (see `jaxdecode methods`)."""
    draft: Annotated[
        str | None, arg(metavar="NAME_OR_PATH", constructor=str, help_behavior_hint="")
    ] = None
    """Draft model of methods that need one, named like the model."""
    heads: _Folder = None
    """Folder with the trained heads of methods that need some, or of a run of `jaxdecode train`."""
    num_draft: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Most draft tokens per step, for methods that have this option."""
    set: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="NAME=VALUE")] = ()
    """Any other option of the method; repeat for more."""
    n: Annotated[int, arg(aliases=("-n",))] = 1
    """Samples per prompt."""
    max_new_tokens: int = 128
    """Most new tokens per prompt."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher values draw more freely."""
    top_k: int = 0
    """Draw from the k likeliest tokens only; 0 from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    min_p: float = 0.0
    """Draw from tokens at least this probable relative to the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that already occurred less likely."""
    stop: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="TEXT")] = ()
    """End a prompt's text before this string."""
    json_schema: _File = None
    """File with a JSON schema that every text has to follow."""
    regex: _Text = None
    """Regular expression that every text has to match as a whole."""
    grammar: _File = None
    """File with a Lark grammar that every text has to follow."""
    ignore_eos: Flag = False
    """Go on after the model's own end tokens."""
    seed: int = 0
    """Seed of every prompt that brings none."""
    batch_size: int = 8
    """Prompts decoded at once; results do not depend on it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the weights; auto is float32 on CPU, else bfloat16."""
    mesh: MeshText = None
    attention: Attention = "auto"
    json: Flag = False
    """Print one JSON line per result: tokens, text, finish_reason, stats; with --n also sample."""
    logprobs: Flag = False
    """Add the log-probability of every new token to the JSON lines."""
    stream: Flag = False
    """Print the text of the one prompt while it is made."""
    out: Annotated[_File, arg(metavar="FILE_OR_FOLDER", help=_OUT_HELP)] = None
    trace: Annotated[_File, arg(metavar="FILE", help=_TRACE_HELP)] = None
    overwrite: Overwrite = False
    on_error: OnError = None
    processes: Processes = None
    process_id: ProcessId = None
    coordinator: Coordinator = None
    join_timeout: JoinTimeout = None
    progress: Flag = False
    """Show progress even if stderr is no terminal."""
    accept_terms: AcceptTerms = False
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        self._check()
        if generate_job.asked_for(self):
            return generate_job.run(self)
        lines = self._lines()
        self._check_stream(lines)
        with open_output(self.out, overwrite=self.overwrite) as out:
            use_compile_cache()
            # Before a model is fetched and loaded: wrong values should not cost minutes.
            self.check_method()
            lm = self.load(self.model)
            draft = None if self.draft is None else self.load(self.draft)
            if self.stream:
                self._stream(lm, draft, lines[0], out)
            else:
                self._batches(lm, draft, lines, out)
        return 0

    def _lines(self) -> list[PromptLine]:
        if self.prompts is not None:
            return read_prompts(self.prompts)
        if self.prompt is not None:
            return [PromptLine("--prompt", {"prompt": self.prompt})]
        return [PromptLine("--message", {"messages": [{"role": "user", "content": self.message}]})]

    def _check(self) -> None:
        given = [n for n in ("prompt", "message", "prompts") if getattr(self, n) is not None]
        if len(given) != 1:
            got = " and ".join(f"--{name}" for name in given) or "none"
            raise InputError(f"give exactly one of --prompt, --message and --prompts, got {got}.")
        if self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size} is out of range; it must be >= 1.")
        if self.n < 1:
            raise InputError(f"--n {self.n} is out of range; it must be >= 1.")
        if self.logprobs and not (self.json or generate_job.asked_for(self)):
            raise InputError("--logprobs are part of the JSON lines; add --json.")
        if self.stream and (self.json or self.out is not None):
            raise InputError("--stream prints plain text to stdout; leave out --json and --out.")
        if self.stream and self.trace is not None:
            raise InputError("--trace is of whole results; leave out --stream.")
        if self.trace is not None:
            check_output(Path(self.trace).expanduser(), self.overwrite, "--trace")

    def _check_stream(self, lines: list[PromptLine]) -> None:
        if self.stream and (len(lines) != 1 or self.n != 1):
            raise InputError(
                f"--stream takes one prompt and one sample, got {len(lines)} and {self.n}."
            )

    def options(self, seeds: list[int | None]) -> dict[str, Any]:
        """Options of `jaxdecode.generate` for prompts with these seeds of their own."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "stop": self.stop,
            "ignore_eos": self.ignore_eos,
            **constraint_options(self.json_schema, self.regex, self.grammar),
            "seed": [self.seed if seed is None else seed for seed in seeds],
            **({} if self.num_draft is None else {"num_draft": self.num_draft}),
            **set_options(self.set, {field.name for field in dataclasses.fields(self)}),
        }

    def check_method(self) -> None:
        """Refuses options, a draft model and heads that the method cannot take."""
        from jaxdecode import resolve
        from jaxdecode.convert.heads import load_heads

        resolve.split(self.method, self.options([None]))
        resolve.check_draft(self.method, given=self.draft is not None)
        heads = None if self.heads is None else load_heads(self.heads)
        resolve.check_heads(self.method, heads and heads.spec.kind)

    def load(self, name: str) -> "LanguageModel":
        """Loads a model as the flags say."""
        from jaxdecode import api

        begin = time.perf_counter()
        lm = api.load(
            name,
            dtype=None if self.dtype == "auto" else self.dtype,
            accept_terms=self.accept_terms,
            mesh=self.mesh,
            attention=self.attention,
            progress=show_progress(self.progress),
        )
        if not self.json:
            note(f"loaded {name} in {time.perf_counter() - begin:.1f} s")
        return lm

    def _batches(
        self,
        lm: "LanguageModel",
        draft: "LanguageModel | None",
        lines: list[PromptLine],
        out: TextIO,
    ) -> None:
        prompts = tokenize_all(lm, lines)
        done, begin, num_tokens = 0, time.perf_counter(), 0
        traces = []
        for first, batch in _sliced(prompts, max(self.batch_size // self.n, 1)):
            last = first + len(batch)
            title = f"prompts {first + 1} to {last} of {len(lines)}"
            options = self.options([line.seed for line in lines[first:last]])
            total = len(batch) * self.n * self.max_new_tokens
            with progress_bar(title, total, show_progress(self.progress)) as progress:
                result = self.decode(lm, draft, batch, progress, options)
            for row in range(len(result.tokens)):
                self._write(result, row, done, len(lines) * self.n, out)
                done += 1
            num_tokens += sum(stats.num_tokens for stats in result.stats)
            traces.append(result.trace)
        if self.trace is not None:
            _save_trace(traces, self.trace, self.overwrite)
        if not self.json:
            seconds = time.perf_counter() - begin
            note(f"{num_tokens} tokens in {seconds:.1f} s ({num_tokens / seconds:.1f} per second)")

    def decode(
        self,
        lm: "LanguageModel",
        draft: "LanguageModel | None",
        prompts: "Sequence[Prompt]",
        progress: Callable[[int], None] | None,
        options: dict[str, Any],
    ) -> "Generation":
        """Decodes prompts with the method of the flags."""
        from jaxdecode import api

        return api.generate(
            lm,
            prompts,
            method=self.method,
            draft=draft,
            heads=self.heads,
            n=self.n,
            batch_size=self.batch_size,
            progress=progress,
            trace=self.trace is not None,
            **options,
        )

    def _write(self, result: "Generation", row: int, index: int, total: int, out: TextIO) -> None:
        if self.json:
            content = record(result, row, num_samples=self.n, logprobs=self.logprobs)
            print(json.dumps(content), file=out, flush=True)
            return
        text = result.texts[row]
        if text is None:
            text = " ".join(map(str, result.tokens[row]))
        if total > 1:
            print(f"--- {index + 1} ---", file=out)
        print(text, file=out, flush=True)

    def _stream(
        self, lm: "LanguageModel", draft: "LanguageModel | None", line: PromptLine, out: TextIO
    ) -> None:
        from jaxdecode import api

        finished: list[Generation] = []
        prompt = tokenize_all(lm, [line])[0]
        options = self.options([line.seed])
        begin, first = time.perf_counter(), None
        pieces = api.stream(
            lm,
            prompt,
            method=self.method,
            draft=draft,
            heads=self.heads,
            on_finish=finished.append,
            **options,
        )
        try:
            for piece in pieces:
                first = first or time.perf_counter()
                print(piece, end="", file=out, flush=True)
        finally:
            # Also after Ctrl-C, so that what is said next stands on its own line.
            print(file=out, flush=True)
        note(_stream_stats(finished[0].stats[0].num_tokens, begin, first or time.perf_counter()))


def _save_trace(traces: list, path: str, overwrite: bool) -> None:
    from jaxdecode.trace import files, steps

    files.save(steps.joined(traces), path, overwrite=overwrite)


def _sliced(items: list, size: int) -> Iterator[tuple[int, list]]:
    for first in range(0, len(items), size):
        yield first, items[first : first + size]


def _stream_stats(num_tokens: int, begin: float, first: float) -> str:
    now = time.perf_counter()
    rate = (num_tokens - 1) / max(now - first, 1e-9)
    after = f", then {rate:.1f} per second" if num_tokens > 1 else ""
    return (
        f"{num_tokens} tokens in {now - begin:.1f} s: the first after {first - begin:.2f} s{after}"
    )
