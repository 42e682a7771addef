"""Processes that share the rows of a job: how they meet, and what they must agree on."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from jaxdecode import checks
from jaxdecode.cli.common import note
from jaxdecode.errors import InputError

if TYPE_CHECKING:
    from jaxdecode.cli.distill import Distill
    from jaxdecode.cli.generate import Generate
    from jaxdecode.cli.train import Train
    from jaxdecode.dist.hosts import Process

# Of digests, enough to tell files apart.
DIGITS = 16
FIELDS = ("processes", "process_id", "coordinator", "join_timeout")

Processes = Annotated[
    int | None,
    arg(
        metavar="N",
        help_behavior_hint="",
        help="Processes that share the prompts; by default as TPU pods, SLURM and the like say.",
    ),
]
ProcessId = Annotated[
    int | None,
    arg(metavar="I", help_behavior_hint="", help="Which of the processes this is, from 0."),
]
Coordinator = Annotated[
    str | None,
    arg(
        metavar="HOST:PORT",
        constructor=str,
        help_behavior_hint="",
        help="Where process 0 waits for the others, to see that all are there and agree.",
    ),
]
JoinTimeout = Annotated[
    float | None,
    arg(
        metavar="SECONDS",
        help_behavior_hint="",
        help="How long the processes wait for each other; 120 unless given.",
    ),
]


def meet(command: "Generate | Distill", settings: dict[str, Any]) -> "Process":
    """Finds this process's place, and the other processes if they have a coordinator."""
    from jaxdecode.dist import hosts

    here, timeout = _this_process(command)
    if here.coordinator is not None and here.num_processes > 1:
        note(f"process {here.process_id} of {here.num_processes} waits for the others")
    # No jax.distributed: the processes share no arrays, and one that dies must not end the others.
    facts = {f"--{name.replace('_', '-')}": json.dumps(value) for name, value in settings.items()}
    hosts.preflight(here, facts, timeout=timeout)
    return here


def join(command: "Train", facts: dict[str, str]) -> None:
    """Joins processes that share arrays: one mesh may span their devices; alone it does nothing."""
    from jaxdecode.dist import hosts

    here, timeout = _this_process(command)
    if here.num_processes > 1:
        note(f"process {here.process_id} of {here.num_processes} waits for the others")
    hosts.start(here, facts, timeout=timeout)


def _this_process(command: "Distill | Generate | Train") -> "tuple[Process, float]":
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
    return here, timeout


def title(here: "Process") -> str:
    """What progress bars call this process."""
    whole = here.num_processes == 1
    return "prompts" if whole else f"process {here.process_id} of {here.num_processes} prompts"


def environment() -> dict[str, Any]:
    """What else rounding depends on; asked only after the processes have met."""
    import jax

    import jaxdecode

    versions = {"version of jaxdecode": jaxdecode.__version__, "version of jax": jax.__version__}
    return {**versions, "backend": jax.default_backend()}


def file_setting(name: str) -> str:
    """What a file is in the settings of a job: its content, wherever it lies."""
    from jaxdecode.convert.checkpoint import hash_files

    return f"file {hash_files([Path(name).expanduser()])[0][:DIGITS]}"


def model_setting(name: str) -> str:
    """What a model is in the settings of a job: hosts may keep the files in different places."""
    from jaxdecode.convert.fingerprint import fingerprint

    path = Path(name).expanduser()
    return f"files {fingerprint(path)[:DIGITS]}" if path.exists() else name


def heads_setting(name: str) -> str:
    """What trained heads are in the settings of a job: their content, wherever they lie."""
    from jaxdecode.convert.fingerprint import fingerprint
    from jaxdecode.convert.heads import folder_of

    return f"files {fingerprint(folder_of(name))[:DIGITS]}"


def remaining(missing: int, total: int) -> str:
    """What is said of parts that are not there."""
    return (
        f"{missing} of {total} parts are not here yet: other processes write them here, or copy "
        "theirs here"
    )
