"""A folder of results that grows part by part: who does what, and what survives a kill.

    job.json                     what the results are made from, and how the rows are divided
    part-00003-of-00040.jsonl    results of consecutive rows; there whole or not at all
    rows-00003-of-00040.*.jsonl  finished rows of a part that is under way (`journal`)
    results.jsonl                all parts in order, once they are there; the parts are then removed

How rows are divided is settled when the folder is begun. A part's content does not depend on who
writes it, so a killed run continues with any number of processes: what is there stays, what is not
there is made. Nothing is lost but the rows in work, and nothing is there twice.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxdecode.convert.atomic import atomic_file
from jaxdecode.errors import InputError, JaxdecodeError

JOB, RESULTS = "job.json", "results.jsonl"
_FORMAT = "jaxdecode-job-1"
_LOCK = ".lock"
# A kill costs about a thousandth of the work, and a folder stays listable.
_MAX_PARTS = 1024
_FULL = (errno.ENOSPC, errno.EDQUOT)
# File systems that cannot link answer so, and those that cannot lock.
_NOT_OFFERED = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A folder and its division into parts.

    Attributes:
        folder: where it is.
        num_rows: rows of the input.
        rows_per_part: consecutive rows of one part; the last part may have fewer.
        lines_per_row: lines that each row gives.
        settings: what the results are made from, by name.
    """

    folder: Path
    num_rows: int
    rows_per_part: int
    lines_per_row: int
    settings: Mapping[str, Any]

    @property
    def num_parts(self) -> int:
        """How many parts there are once all is done."""
        return -(-self.num_rows // self.rows_per_part)

    @property
    def results(self) -> Path:
        """The merged output."""
        return self.folder / RESULTS

    def part(self, number: int) -> Path:
        """The file of one part."""
        return self.folder / f"part-{number:05}-of-{self.num_parts:05}.jsonl"

    def journal(self, number: int, run: str) -> Path:
        """The file in which one run keeps finished rows of a part that is not complete."""
        return self.folder / f"rows-{number:05}-of-{self.num_parts:05}.{run}.jsonl"

    def journals(self, number: int) -> list[Path]:
        """Those files of all runs."""
        return sorted(self.folder.glob(self.journal(number, "*").name))

    def rows(self, number: int) -> range:
        """The rows of one part."""
        first = number * self.rows_per_part
        return range(first, min(first + self.rows_per_part, self.num_rows))


def begin(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    num_rows: int,
    batch_rows: int,
    lines_per_row: int = 1,
    num_processes: int = 1,
) -> Job:
    """Begins a folder, or continues one that was begun with the same settings.

    Args:
        folder: to create, empty, or begun before.
        settings: everything the results depend on; values of JSON.
        num_rows: rows of the input.
        batch_rows: rows decoded at once; parts are multiples of it unless there are few rows.
        lines_per_row: lines that each row gives.
        num_processes: processes that shall each have something to do.

    Raises:
        InputError: begun with other settings, which are named; holds other things; not writable.
    """
    batches = -(-num_rows // (batch_rows * _MAX_PARTS))
    job = Job(
        folder=folder,
        num_rows=num_rows,
        rows_per_part=min(batch_rows * batches, -(-num_rows // num_processes)),
        lines_per_row=lines_per_row,
        settings=json.loads(json.dumps(dict(settings))),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / JOB).exists():
            _check_new(folder)
            _create(job)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}).") from error
    begun = read(folder)
    _compare(begun, job)
    return begun


def read(folder: Path) -> Job:
    """The job of a folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / JOB
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != _FORMAT:
            raise ValueError("it is of another version")
        return Job(folder=folder, **content)
    except FileNotFoundError as error:
        raise InputError(f"{folder} has no {JOB}; it is no folder of results.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); begin another folder.") from error


def _check_new(folder: Path) -> None:
    # Hidden ones may be another process that begins the same folder right now.
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if others and JOB not in others:
        raise InputError(
            f"{folder} holds other things ({', '.join(others[:3])}) and no {JOB}; choose a new or "
            "empty folder."
        )


def _create(job: Job) -> None:
    """Writes `job.json` unless another process was first."""
    content = {"format": _FORMAT, **dataclasses.asdict(job)}
    del content["folder"]
    work = job.folder / f".{JOB}.{secrets.token_hex(4)}"
    try:
        work.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        try:
            (job.folder / JOB).hardlink_to(work)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
            work.replace(job.folder / JOB)
    finally:
        work.unlink(missing_ok=True)


def _compare(begun: Job, job: Job) -> None:
    was, now = begun.settings, job.settings
    # The rest of the division follows from the settings, or need not agree.
    differing = [name for name in dict.fromkeys([*was, *now]) if was.get(name) != now.get(name)]
    if differing:
        told = ", ".join(
            f"{name} was {json.dumps(was.get(name))} and is now {json.dumps(now.get(name))}"
            for name in differing
        )
        raise InputError(
            f"{begun.folder} was begun differently: {told}. Use the same options and files, or "
            "another folder."
        )


@contextlib.contextmanager
def claim(job: Job, process_id: int) -> Iterator[None]:
    """Keeps a second process of the same id out, as long as this one lives.

    It saves work and is not needed for the results: file systems without locks may do without.

    Raises:
        InputError: such a process is at work.
    """
    try:
        file = (job.folder / _LOCK).open("a+b")
    except OSError as error:
        raise InputError(f"{job.folder} cannot be written ({error.strerror}).") from error
    with file:
        try:
            # One byte per process id; the system takes the lock back however a process ends.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, process_id)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise InputError(
                    f"process {process_id} of {job.folder} is running already; wait for it or end "
                    "it, or give this one another process id."
                ) from error
        yield


def to_do(job: Job, process_id: int, num_processes: int) -> list[int]:
    """Parts of one process that are not there yet."""
    if job.results.exists():
        return []
    share = range(process_id, job.num_parts, num_processes)
    return [number for number in share if not job.part(number).exists()]


def missing(job: Job) -> list[int]:
    """Parts of all processes that are not there yet."""
    return to_do(job, 0, 1)


def write(job: Job, number: int, lines: Iterable[str]) -> None:
    """Writes a part, which appears whole.

    Raises:
        JaxdecodeError: no space is left.
    """
    with space(job), atomic_file(job.part(number)) as file:
        file.writelines(f"{line}\n" for line in lines)


def merge(job: Job) -> bool:
    """Joins the parts once all are there; tells whether the results are complete.

    Any process may call it at any time, also several at once.

    Raises:
        InputError: a part has lost or gained lines.
        JaxdecodeError: no space is left.
    """
    if missing(job):
        return False
    try:
        if not job.results.exists():
            _join(job)
    except FileNotFoundError:
        # Another process was faster and has tidied up.
        if not job.results.exists():
            raise
    for pattern in ("part-*.jsonl", ".part-*", "rows-*.jsonl", f".{RESULTS}.*", f".{JOB}.*", _LOCK):
        for path in job.folder.glob(pattern):
            path.unlink(missing_ok=True)
    return True


def _join(job: Job) -> None:
    with space(job), atomic_file(job.results) as results:
        for number in range(job.num_parts):
            _check_part(job, number)
            with job.part(number).open(encoding="utf-8") as part:
                shutil.copyfileobj(part, results)


def _check_part(job: Job, number: int) -> None:
    with job.part(number).open("rb") as part:
        found = sum(1 for _ in part)
    wanted = len(job.rows(number)) * job.lines_per_row
    if found != wanted:
        raise InputError(
            f"{job.part(number)} has {found} lines instead of {wanted}; remove it and run the same "
            "command again."
        )


@contextlib.contextmanager
def space(job: Job) -> Iterator[None]:
    """Turns a full disk into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise JaxdecodeError(
            f"{job.folder}: no space is left on the disk. Nothing is lost: make room and run the "
            "same command again."
        ) from error
