"""`jaxdecode generate --out FOLDER`: many prompts, on any number of processes, resumable."""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdecode.cli import sharing
from jaxdecode.cli.common import note, print_json, show_progress, use_compile_cache
from jaxdecode.cli.output import record, run_bar
from jaxdecode.cli.prompts import PromptLine, tokenize_all
from jaxdecode.errors import InputError

if TYPE_CHECKING:
    from jaxdecode.api import Generation
    from jaxdecode.cli.generate import Generate
    from jaxdecode.dist.hosts import Process
    from jaxdecode.jobs import Job

# Fields of the command that do not change the results, besides those of sharing.
_NO_SETTINGS = (
    *("prompt", "message", "batch_size", "mesh", "attention", "json", "stream", "out"),
    *("overwrite", "progress", "accept_terms", "debug"),
)


def asked_for(command: "Generate") -> bool:
    """Whether results go to a folder, part by part; refuses what makes sense only then."""
    out = command.out
    if out is not None and (out.endswith("/") or Path(out).expanduser().is_dir()):
        return True
    for name in sharing.FIELDS:
        if getattr(command, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} needs a folder for the results: --out FOLDER/."
            )
    return False


def run(command: "Generate", lines: list[PromptLine]) -> int:
    """Does one process's share of the work; whoever finds all of it done merges the results."""
    from jaxdecode import jobs

    _check(command)
    # Before anybody waits for another: wrong values should not cost minutes.
    command.check_method(lines)
    settings = _settings(command)
    here = sharing.meet(command, settings)
    begin = time.perf_counter()
    use_compile_cache()
    job = jobs.begin(
        Path(str(command.out)).expanduser(),
        settings | sharing.environment(),
        num_rows=len(lines),
        batch_rows=max(command.batch_size // command.n, 1),
        lines_per_row=command.n,
        num_processes=here.num_processes,
    )
    with jobs.claim(job, here.process_id):
        parts = jobs.to_do(job, here.process_id, here.num_processes)
        done = _decode(command, job, parts, lines, sharing.title(here)) if parts else (0, 0)
        jobs.merge(job)
    _report(command, job, here, done, time.perf_counter() - begin)
    return 0


def _check(command: "Generate") -> None:
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
    settings["prompts"] = sharing.file_setting(settings["prompts"])
    for name in ("model", "draft"):
        if settings[name] is not None:
            settings[name] = sharing.model_setting(settings[name])
    if settings["heads"] is not None:
        settings["heads"] = sharing.heads_setting(settings["heads"])
    return settings


def _decode(
    command: "Generate", job: "Job", parts: list[int], lines: list[PromptLine], title: str
) -> tuple[int, int]:
    """Decodes parts; returns how many prompts and new tokens there were."""
    import numpy as np

    from jaxdecode import jobs

    lm = command.load(command.model)
    draft = None if command.draft is None else command.load(command.draft)
    mine = [[lines[i] for i in job.rows(number)] for number in parts]
    # As arrays: lists of millions of tokens would fill the memory.
    prompts = [[np.asarray(row, np.int32) for row in tokenize_all(lm, rows)] for rows in mine]
    num_prompts, num_tokens = sum(map(len, mine)), 0
    with run_bar(title, num_prompts, show_progress(command.progress)) as tick:
        for number, rows, tokens in zip(parts, mine, prompts, strict=True):
            options = command.options([line.seed for line in rows])
            result = command.decode(lm, draft, tokens, None, options)
            jobs.write(job, number, _json_lines(command, job.rows(number), result))
            num_tokens += sum(stats.num_tokens for stats in result.stats)
            tick(len(rows))
    return num_prompts, num_tokens


def _json_lines(command: "Generate", rows: range, result: "Generation") -> Iterator[str]:
    for i in range(len(result.tokens)):
        content = record(result, i, num_samples=command.n, logprobs=command.logprobs)
        yield json.dumps({"index": rows[i // command.n]} | content)


def _report(
    command: "Generate", job: "Job", here: "Process", done: tuple[int, int], seconds: float
) -> None:
    from jaxdecode import jobs

    missing = jobs.missing(job)
    (num_prompts, num_tokens), results = done, None if missing else str(job.results)
    if command.json:
        content = {
            "results": results,
            "process_id": here.process_id,
            "num_processes": here.num_processes,
            "num_prompts": job.num_rows,
            "num_parts": job.num_parts,
            "missing_parts": len(missing),
            "new_prompts": num_prompts,
            "new_tokens": num_tokens,
            "seconds": seconds,
        }
        print_json(content, indent=None)
        return
    note(f"{num_prompts} prompts and {num_tokens} tokens in {seconds:.1f} s")
    if results is None:
        note(f"{sharing.remaining(len(missing), job.num_parts)} and run `jaxdecode merge`")
    else:
        note(f"complete: {results}")
