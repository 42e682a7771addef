"""`jaxdecode generate --out FOLDER`: many prompts, on any number of processes, resumable."""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdecode import checks
from jaxdecode.cli.common import note, print_json, show_progress, use_compile_cache
from jaxdecode.cli.output import record, run_bar
from jaxdecode.cli.prompts import PromptLine, tokenize_all
from jaxdecode.errors import InputError

if TYPE_CHECKING:
    from jaxdecode.api import Generation
    from jaxdecode.cli.generate import Generate
    from jaxdecode.dist.hosts import Process
    from jaxdecode.jobs import Job

# Fields of the command that do not change the results, besides those of `_JOB_FIELDS`.
_NO_SETTINGS = (
    *("prompt", "message", "batch_size", "mesh", "attention", "json", "stream", "out"),
    *("overwrite", "progress", "accept_terms", "debug"),
)
# Of digests, enough to tell files apart.
_DIGITS = 16
_JOB_FIELDS = ("processes", "process_id", "coordinator", "join_timeout")


def asked_for(command: "Generate") -> bool:
    """Whether results go to a folder, part by part; refuses what makes sense only then."""
    out = command.out
    if out is not None and (out.endswith("/") or Path(out).expanduser().is_dir()):
        return True
    for name in _JOB_FIELDS:
        if getattr(command, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} needs a folder for the results: --out FOLDER/."
            )
    return False


def run(command: "Generate", lines: list[PromptLine]) -> int:
    """Does one process's share of the work; whoever finds all of it done merges the results."""
    from jaxdecode import jobs, resolve

    _check(command)
    # Before anybody waits for another: wrong values should not cost minutes.
    resolve.split(command.method, command.options([line.seed for line in lines]))
    resolve.check_draft(command.method, given=command.draft is not None)
    settings = _settings(command)
    here = _meet(command, settings)
    begin = time.perf_counter()
    use_compile_cache()
    job = jobs.begin(
        Path(str(command.out)).expanduser(),
        settings | _environment(),
        num_rows=len(lines),
        batch_rows=max(command.batch_size // command.n, 1),
        lines_per_row=command.n,
        num_processes=here.num_processes,
    )
    with jobs.claim(job, here.process_id):
        parts = jobs.to_do(job, here.process_id, here.num_processes)
        done = _decode(command, job, parts, lines, _title(here)) if parts else (0, 0)
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
    from jaxdecode.convert.checkpoint import hash_files
    from jaxdecode.convert.fingerprint import fingerprint

    names = [field.name for field in dataclasses.fields(command)]
    settings = {
        name: getattr(command, name) for name in names if name not in (*_NO_SETTINGS, *_JOB_FIELDS)
    }
    digest = hash_files([Path(settings["prompts"]).expanduser()])[0]
    settings["prompts"] = f"file {digest[:_DIGITS]}"
    for name in ("model", "draft"):
        # Hosts may keep the same files in different places.
        path = Path(settings[name] or "").expanduser()
        if settings[name] is not None and path.exists():
            settings[name] = f"files {fingerprint(path)[:_DIGITS]}"
    return settings


def _environment() -> dict[str, Any]:
    """What else rounding depends on; asked only after the processes have met."""
    import jax

    import jaxdecode

    versions = {"version of jaxdecode": jaxdecode.__version__, "version of jax": jax.__version__}
    return {**versions, "backend": jax.default_backend()}


def _meet(command: "Generate", settings: dict[str, Any]) -> "Process":
    """Finds this process's place, and the other processes if they have a coordinator."""
    from jaxdecode.dist import hosts

    timeout = hosts.TIMEOUT_SECONDS if command.join_timeout is None else command.join_timeout
    checks.number("--join-timeout", timeout, "a number of seconds > 0", lambda x: x > 0)
    here = hosts.this_process(
        coordinator=command.coordinator,
        num_processes=command.processes,
        process_id=command.process_id,
        timeout=timeout,
    )
    if command.join_timeout is not None and here.coordinator is None:
        raise InputError("--join-timeout has nobody to wait for; add --coordinator.")
    if here.coordinator is not None and here.num_processes > 1:
        note(f"process {here.process_id} of {here.num_processes} waits for the others")
    # No jax.distributed: the processes share no arrays, and one that dies must not end the others.
    facts = {f"--{name.replace('_', '-')}": json.dumps(value) for name, value in settings.items()}
    hosts.preflight(here, facts, timeout=timeout)
    return here


def _title(here: "Process") -> str:
    return f"process {here.process_id} of {here.num_processes}" if here.num_processes > 1 else ""


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
    with run_bar(f"{title} prompts".strip(), num_prompts, show_progress(command.progress)) as tick:
        for number, rows, tokens in zip(parts, mine, prompts, strict=True):
            options = command.options([line.seed for line in rows])
            result = command.decode(lm, draft, tokens, None, options)
            jobs.write(job, number, _json_lines(command, job.rows(number), result))
            num_tokens += sum(stats.num_tokens for stats in result.stats)
            for _ in rows:
                tick()
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
        note(
            f"{len(missing)} of {job.num_parts} parts are not here yet: other processes write them "
            "here, or copy theirs here and run `jaxdecode merge`"
        )
    else:
        note(f"complete: {results}")
