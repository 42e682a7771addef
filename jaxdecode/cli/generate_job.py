"""`jaxdecode generate --out FOLDER`: many prompts, on any number of processes, resumable."""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdecode import jsonl
from jaxdecode.cli import sharing
from jaxdecode.cli.common import note, print_json, show_progress, use_compile_cache
from jaxdecode.cli.output import record, rows_bar
from jaxdecode.cli.prompts import PromptLine, count_prompts, parse_prompt, tokenize_line
from jaxdecode.errors import InputError, JaxdecodeError

if TYPE_CHECKING:
    from jaxdecode.api import Generation, LanguageModel
    from jaxdecode.cli.generate import Generate
    from jaxdecode.dist.hosts import Process
    from jaxdecode.jobs import Job
    from jaxdecode.many import Asked

# Fields of the command that do not change the results, besides those of sharing.
_NO_SETTINGS = (
    *("prompt", "message", "batch_size", "mesh", "attention", "json", "stream", "out"),
    *("on_error", "overwrite", "progress", "accept_terms", "debug", "trace"),
)


def asked_for(command: "Generate") -> bool:
    """Whether results go to a folder, part by part; refuses what makes sense only then."""
    out = command.out
    if out is not None and (out.endswith("/") or Path(out).expanduser().is_dir()):
        return True
    for name in (*sharing.FIELDS, "on_error"):
        if getattr(command, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} needs a folder for the results: --out FOLDER/."
            )
    return False


def run(command: "Generate") -> int:
    """Does one process's share of the work; whoever finds all of it done merges the results."""
    from jaxdecode import jobs

    _check(command)
    # Before anybody waits for another: wrong values should not cost minutes.
    command.check_method()
    num_rows = count_prompts(str(command.prompts))
    if command.on_error == "stop":
        for _ in _lines(command):
            pass
    settings = _settings(command)
    here = sharing.meet(command, settings)
    begin = time.perf_counter()
    use_compile_cache()
    job = jobs.begin(
        Path(str(command.out)).expanduser(),
        settings | sharing.environment(),
        num_rows=num_rows,
        batch_rows=max(command.batch_size // command.n, 1),
        lines_per_row=command.n,
        num_processes=here.num_processes,
    )
    done = _Done()
    with jobs.claim(job, here.process_id):
        parts = jobs.to_do(job, here.process_id, here.num_processes)
        if parts:
            _decode(command, job, parts, sharing.title(here), done)
        jobs.merge(job)
    return _report(command, job, here, done, time.perf_counter() - begin)


def _check(command: "Generate") -> None:
    if command.trace is not None:
        raise InputError(
            f"--trace {command.trace} is for results that one process writes; with a folder as "
            "--out leave it out."
        )
    if command.prompts is None or command.prompts == "-":
        raise InputError(f"--out {command.out} is a folder; that takes --prompts FILE.")
    if command.overwrite:
        raise InputError(
            f"--overwrite replaces files, not the folder --out {command.out}; remove it yourself, "
            "or choose another."
        )


def _settings(command: "Generate") -> dict[str, Any]:
    """What must be the same on every host and after every restart, by field of the command."""
    names = [field.name for field in dataclasses.fields(command)]
    settings = {
        name: getattr(command, name)
        for name in names
        if name not in (*_NO_SETTINGS, *sharing.FIELDS)
    }
    for name in ("prompts", "json_schema", "grammar"):
        if settings[name] is not None:
            settings[name] = sharing.file_setting(settings[name])
    for name in ("model", "draft"):
        if settings[name] is not None:
            settings[name] = sharing.model_setting(settings[name])
    if settings["heads"] is not None:
        settings["heads"] = sharing.heads_setting(settings["heads"])
    return settings


@dataclasses.dataclass
class _Done:
    """What this process did: prompts and new tokens, and what was wrong with prompts."""

    num_prompts: int = 0
    num_tokens: int = 0
    num_errors: int = 0
    first_error: str = ""


def _lines(command: "Generate") -> Iterator[PromptLine]:
    """The prompts, one after the other; the first that cannot be used is an error."""
    name = str(command.prompts)
    for number, line in jsonl.lines(name, option="--prompts"):
        yield parse_prompt(line, f"{name}:{number}")


def _decode(command: "Generate", job: "Job", parts: list[int], title: str, done: _Done) -> None:
    """Decodes parts, and keeps every row as it ends."""
    from jaxdecode.journal import Journal

    lm = command.load(command.model)
    draft = None if command.draft is None else command.load(command.draft)
    if command.on_error == "stop":
        _check_tokens(command, lm, job, parts)
    journal = Journal(job)
    to_do = {part: rows for part in parts if (rows := journal.begin(part))}
    total = sum(map(len, to_do.values()))
    with rows_bar(title, total, show_progress(command.progress)) as tick:

        def keep(row: int, contents: list[dict[str, Any]]) -> None:
            journal.add(row, [json.dumps({"index": row} | content) for content in contents])
            done.num_prompts += 1

        def fail(row: int, error: JaxdecodeError) -> None:
            samples = [{}] if command.n == 1 else [{"sample": i} for i in range(command.n)]
            keep(row, [{"error": str(error)} | sample for sample in samples])
            done.num_errors += 1
            done.first_error = done.first_error or str(error)
            tick(0)

        asked = _asked(command, lm, job, to_do, fail)
        for row, result in _results(command, lm, draft, asked):
            law = {"num_samples": command.n, "logprobs": command.logprobs}
            keep(row, [record(result, i, **law) for i in range(command.n)])
            num_tokens = sum(stats.num_tokens for stats in result.stats)
            done.num_tokens += num_tokens
            tick(num_tokens)


def _asked(
    command: "Generate",
    lm: "LanguageModel",
    job: "Job",
    to_do: dict[int, Collection[int]],
    fail: Callable[[int, JaxdecodeError], None],
) -> "Iterator[Asked]":
    """The prompts of the rows to do, read as they are needed; the others are told to `fail`."""
    import numpy as np

    from jaxdecode.many import Asked

    for row, (number, text) in enumerate(jsonl.lines(str(command.prompts), option="--prompts")):
        if row not in to_do.get(row // job.rows_per_part, ()):
            continue
        try:
            line = parse_prompt(text, f"line {number}")
            tokens = tokenize_line(lm, line)
        except JaxdecodeError as error:
            fail(row, error)
            continue
        seed = command.seed if line.seed is None else line.seed
        # An array: lists of thousands of rows that wait would fill the memory.
        yield Asked(row, np.asarray(tokens, np.int32), seed)


def _results(
    command: "Generate",
    lm: "LanguageModel",
    draft: "LanguageModel | None",
    asked: "Iterator[Asked]",
) -> "Iterator[tuple[int, Generation]]":
    """Rows as they are done; in fixed batches where it cannot be otherwise, and that is said."""
    from jaxdecode import many

    options = command.options([])
    del options["seed"]
    given = {"method": command.method, "draft": draft, "heads": command.heads, "n": command.n}
    sizes = {"batch_size": command.batch_size, "look_ahead": many.LOOK_AHEAD}

    def on_fixed(why: str) -> None:
        note(f"finished rows wait for their batch: {why}")

    way = {"refilled": True, "on_fixed": on_fixed}
    return many.decode(lm, asked, **given, **sizes, **way, **options)


def _check_tokens(command: "Generate", lm: "LanguageModel", job: "Job", parts: list[int]) -> None:
    """Refuses the first prompt of these parts that the model cannot take."""
    mine = set(parts)
    for row, line in enumerate(_lines(command)):
        if row // job.rows_per_part in mine:
            tokenize_line(lm, line)


def _report(command: "Generate", job: "Job", here: "Process", done: _Done, seconds: float) -> int:
    """Says what was done; returns the exit code: 1 if no prompt could be used."""
    from jaxdecode import jobs

    missing = jobs.missing(job)
    results = None if missing else str(job.results)
    num_errors = None if missing else _num_errors(job)
    code = int(num_errors == job.num_rows)
    if command.json:
        content = {
            "results": results,
            "process_id": here.process_id,
            "num_processes": here.num_processes,
            "num_prompts": job.num_rows,
            "num_errors": num_errors,
            "num_parts": job.num_parts,
            "missing_parts": len(missing),
            "new_prompts": done.num_prompts,
            "new_tokens": done.num_tokens,
            "new_errors": done.num_errors,
            "seconds": seconds,
        }
        print_json(content, indent=None)
        return code
    rate = done.num_tokens / max(seconds, 1e-9)
    told = f"{done.num_prompts} prompts and {done.num_tokens} tokens in {seconds:.1f} s"
    note(f"{told} ({rate:.1f} per second)")
    if done.num_errors:
        note(f"{done.num_errors} of these prompts have an error, the first: {done.first_error}")
    if results is None:
        note(f"{sharing.remaining(len(missing), job.num_parts)} and run `jaxdecode merge`")
        return code
    errors = f", {num_errors} of {job.num_rows} prompts with an error" if num_errors else ""
    note(f"complete: {results}{errors}")
    return code


def _num_errors(job: "Job") -> int:
    """Rows of the results that are errors; such a line has it next to the index."""
    begins = re.compile(rb'{"index": \d+, "error": ')
    with job.results.open("rb") as file:
        return sum(1 for line in file if begins.match(line)) // job.lines_per_row
