"""A job file: which slice, what to run there, what to bring back."""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml

from tpu_scripts import slices

_NAME = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"
_CHECKS = {
    "name": (_NAME, "lower-case letters, digits and hyphens, at most 40, such as my-job"),
    "project": (r"[a-z][-a-z0-9.:]{4,}[a-z0-9]", "the id of a project, such as my-project-123"),
    "zone": (r"[a-z]+-[a-z]+[0-9]+-[a-z]", "a zone, such as us-west4-a"),
    "bucket": (r"gs://[a-z0-9][-_.a-z0-9]+(/[^/\s]+)*", "gs://BUCKET or gs://BUCKET/FOLDER"),
    "queued.valid_until": (r"[0-9]+[smhd]", "a number and one of s, m, h, d, such as 6h"),
    "xpk.cluster": (_NAME, "the name of a cluster that xpk made, such as my-cluster"),
    "slurm.time": (r"([0-9]+-)?[0-9]+(:[0-9]{2}){1,2}", "[DAYS-]HOURS:MINUTES:SECONDS"),
}


class JobError(Exception):
    """Something in a job file, or in what the cloud answered, that the user can put right."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Install:
    """What is installed on the hosts.

    Attributes:
        wheel: a wheel of jaxdecode; without it the commit that is checked out here.
        extras: extras of jaxdecode besides tpu.
    """

    wheel: str | None = None
    extras: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Queued:
    """How a queued request is made: as spot capacity, and until when it waits."""

    spot: bool = False
    valid_until: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Xpk:
    """Where `xpk` runs the job: cluster, base image, and restarts after a lost slice."""

    cluster: str
    image: str = "python:3.12"
    max_restarts: int = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slurm:
    """What a SLURM script asks for; one process per GPU."""

    nodes: int
    gpus_per_node: int
    time: str
    partition: str | None = None
    account: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A job file, checked. docs/tpu_pods.md explains the keys."""

    name: str
    project: str
    zone: str
    accelerator: str
    command: str
    mode: Literal["on_demand", "spot", "queued"] = "on_demand"
    runtime: str | None = None
    devices: Literal["slice", "host"] = "slice"
    install: Install = Install()
    files: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    bucket: str | None = None
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    create_flags: tuple[str, ...] = ()
    ssh_flags: tuple[str, ...] = ()
    min_disk_gb: int = 10
    queued: Queued = Queued()
    xpk: Xpk | None = None
    slurm: Slurm | None = None

    @property
    def slice(self) -> slices.Slice:
        """The slice that `accelerator` names."""
        return slices.find(self.accelerator)

    @property
    def store(self) -> str | None:
        """Where the outputs are kept: a folder of the bucket with the job's name."""
        return None if self.bucket is None else f"{self.bucket}/{self.name}"

    @property
    def folder(self) -> Path:
        """Where things of this job lie here, below the checkout."""
        return Path("runs") / "tpu" / self.name


def read(path: Path) -> Job:
    """Reads and checks a job file.

    Raises:
        JobError: it is not there, no YAML, or a key is unknown, missing or has a bad value.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"{path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    try:
        job = _build(Job, data, "")
        _check(job)
    except JobError as error:
        raise JobError(f"{path}: {error}") from None
    return job


def _build(kind: type, data: Any, where: str) -> Any:
    """A dataclass from a mapping; `where` is the path of keys before it, with a dot."""
    if not isinstance(data, dict):
        raise JobError(f"{where.rstrip('.') or 'the file'} must be a mapping of keys to values.")
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    for key in data:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(hints)}."
            raise JobError(f"key {where + str(key)!r} is unknown; {hint}")
    empty = dataclasses.MISSING
    for field in fields:
        given = data.get(field.name) is not None
        if not given and field.default is empty and field.default_factory is empty:
            example = _CHECKS.get(where + field.name, ("", "see tpu_scripts/jobs/"))[1]
            raise JobError(f"key {where + field.name!r} is missing; add it: {example}.")
    given = {key: value for key, value in data.items() if value is not None}
    return kind(**{key: _value(hints[key], value, where + key) for key, value in given.items()})


def _value(hint: Any, value: Any, key: str) -> Any:
    """A value of the type that a field has."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _value(typing.get_args(hint)[0], value, key)
    if hint in (Install, Queued, Xpk, Slurm):
        return _build(hint, value, f"{key}.")
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise JobError(f"{key}: {value!r} is not one of {', '.join(typing.get_args(hint))}.")
        return value
    if origin is tuple:
        if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
            raise JobError(f"{key}: {value!r} is no list of texts; write [a, b].")
        return tuple(value)
    if origin is Mapping:
        if not isinstance(value, dict) or not all(isinstance(x, str) for x in value.values()):
            raise JobError(f'{key}: write NAME: "value", every value in quotes.')
        return value
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {str: "a text; put it in quotes", int: "an integer", bool: "true or false"}
        raise JobError(f"{key}: {value!r} is not {names[hint]}.")
    return value


def _check(job: Job) -> None:
    for key, (pattern, wanted) in _CHECKS.items():
        value: Any = job
        for name in key.split("."):
            value = getattr(value, name, None)
        if value is not None and not re.fullmatch(pattern, value):
            raise JobError(f"{key}: {value!r} is not valid; it must be {wanted}.")
    try:
        slices.find(job.accelerator)
    except ValueError as error:
        raise JobError(f"accelerator: {job.accelerator!r} is not valid: {error}.") from None
    if "\n" in job.command.strip() or not job.command.strip():
        raise JobError("command: must be one line; for a long one write `command: >-` before it.")
    for key in ("files", "outputs"):
        for path in getattr(job, key):
            if not _inside(path):
                raise JobError(
                    f"{key}: {path!r} must be a path inside the checkout, without spaces or '..'."
                )
    for name in job.env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)):
            raise JobError(f"env: {name!r} is no name of an environment variable.")
    _check_numbers(job)
    if job.mode != "queued" and job.queued != Queued():
        raise JobError(f"queued: has a meaning only with mode: queued, but mode is {job.mode}.")


def _check_numbers(job: Job) -> None:
    numbers = {"min_disk_gb": job.min_disk_gb}
    if job.xpk is not None:
        numbers["xpk.max_restarts"] = job.xpk.max_restarts
    if job.slurm is not None:
        numbers |= {"slurm.nodes": job.slurm.nodes, "slurm.gpus_per_node": job.slurm.gpus_per_node}
    for key, value in numbers.items():
        low = 1 if key.startswith("slurm") else 0
        if value < low:
            raise JobError(f"{key}: {value} is too small; it must be >= {low}.")


def _inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(re.fullmatch(r"[-\w./=+]+", path)) and not (
        pure.is_absolute() or ".." in pure.parts or str(pure) == "."
    )
