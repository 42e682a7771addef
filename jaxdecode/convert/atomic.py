"""Directories and files that appear whole or not at all.

Everything is written into a hidden sibling, flushed to disk, and renamed. A writer holds a lock on
its sibling for as long as it lives, so that the next writer can tell a leftover of a killed run
(lock free: remove it) from work in progress (lock taken: leave it alone).
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from jaxdecode.errors import CheckpointError, DestinationExistsError, InputError

MARKER = ".jaxdecode-partial-"
_OLD_MARKER = ".jaxdecode-replaced-"
# A directory may be replaced only if it holds one of these, so that no other work is ever deleted.
_CHECKPOINT_FILES = ("manifest.json", "config.json")
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_partial(path: Path) -> bool:
    """Whether a path lies in the hidden work directory of a running or killed conversion."""
    return any(MARKER in part for part in path.parts)


@contextlib.contextmanager
def atomic_directory(dst: Path, *, overwrite: bool = False, num_bytes: int = 0) -> Iterator[Path]:
    """Yields an empty directory that becomes `dst` when the block ends without an exception.

    Args:
        dst: the directory to create; its parents are made.
        overwrite: replace an existing checkpoint directory; it stays until the new one is complete.
        num_bytes: what will be written; checked against the free space beforehand.

    Raises:
        DestinationExistsError: `dst` exists and `overwrite` is False, or it is no checkpoint.
        CheckpointError: the disk is full or nearly so, or cannot be written.
    """
    dst = Path(os.path.abspath(dst))  # noqa: PTH100  (resolve() would follow a link at dst)
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        _clean(dst)
        _check_destination(dst, overwrite)
        _check_space(dst, num_bytes)
        work = dst.with_name(f".{dst.name}{MARKER}{secrets.token_hex(4)}")
        work.mkdir()
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise InputError(f"{dst} cannot be written ({error.strerror or error}).") from error
    lock = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield work
        _flush(work)
        _swap(work, dst, overwrite)
    except OSError as error:
        if error.errno in _FULL:
            raise _disk_full(dst, num_bytes) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[TextIO]:
    """Yields a hidden sibling that takes the place of `path` when the block ends without exception.

    Raises:
        OSError: it cannot be written.
    """
    work = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with work.open("x", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def _disk_full(dst: Path, num_bytes: int) -> CheckpointError:
    """The error for a disk that has no room for `num_bytes` more at `dst`."""
    free = shutil.disk_usage(dst.parent).free
    return CheckpointError(
        f"{dst}: no space left on the disk; about {num_bytes:,} bytes are needed and {free:,} are "
        "free. Nothing was changed."
    )


def _check_destination(dst: Path, overwrite: bool) -> None:
    if not (dst.exists() or dst.is_symlink()):
        return
    if not overwrite:
        raise DestinationExistsError(
            f"{dst} exists; choose another destination or pass overwrite (--overwrite)."
        )
    ours = dst.is_dir() and not dst.is_symlink()
    if not ours or (
        any(dst.iterdir()) and not any((dst / name).is_file() for name in _CHECKPOINT_FILES)
    ):
        raise DestinationExistsError(
            f"{dst} exists and is not a checkpoint directory, so it is not overwritten; remove it "
            "yourself or choose another destination."
        )


def _check_space(dst: Path, num_bytes: int) -> None:
    if num_bytes > shutil.disk_usage(dst.parent).free:
        raise _disk_full(dst, num_bytes)


def _flush(root: Path) -> None:
    """Forces every file and directory below `root` to disk, so that a rename implies content."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in (*files, "."):
            _sync(Path(folder) / name)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(work: Path, dst: Path, overwrite: bool) -> None:
    old = dst.with_name(f".{dst.name}{_OLD_MARKER}{secrets.token_hex(4)}")
    if overwrite and dst.exists():
        dst.rename(old)
    elif dst.exists():
        # rename(2) would silently replace an empty directory made meanwhile.
        raise DestinationExistsError(f"{dst} was created by somebody else meanwhile.")
    try:
        work.rename(dst)
    except BaseException:
        if old.exists() and not dst.exists():
            old.rename(dst)
        raise
    _sync(dst.parent)
    shutil.rmtree(old, ignore_errors=True)


def _clean(dst: Path) -> None:
    """Removes what killed runs left beside `dst`, and puts a half-replaced `dst` back."""
    for path in dst.parent.glob(f".{_escape(dst.name)}{MARKER}*"):
        if _abandoned(path):
            shutil.rmtree(path, ignore_errors=True)
    for old in dst.parent.glob(f".{_escape(dst.name)}{_OLD_MARKER}*"):
        # Killed between the two renames of `_swap`: the old directory is still the valid one.
        if dst.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(dst)


def _escape(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _abandoned(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
