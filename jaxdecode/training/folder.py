"""The folder of a run: who may write there, and whether it belongs to this config."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxdecode.convert.atomic import atomic_file
from jaxdecode.errors import CheckpointError, DestinationExistsError, InputError
from jaxdecode.training import config as configs
from jaxdecode.training.config import TrainConfig

RUN, STEPS = "run.json", "steps"
_FORMAT = "jaxdecode-run"


def check(folder: Path, config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Refuses a folder that is not for this run; writes nothing.

    Raises:
        DestinationExistsError: there is a run already, and neither flag is given.
        InputError: it is a run with another config; the first difference is named.
    """
    known = read(folder)
    if known is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DestinationExistsError(f"{folder} exists and holds no run; choose another --out.")
        return
    found = configs.first_difference(known["config"], _plain(config))
    if resume and found is not None:
        key, old, new = found
        raise InputError(
            f"{folder} was begun with {key}={old!r}, and now it is {new!r}; resume with the "
            "config of the run, or begin another with --out."
        )
    if not (resume or overwrite):
        raise DestinationExistsError(
            f"{folder} holds a run already; --resume goes on with it, --overwrite begins anew, "
            "--out takes another folder."
        )


def prepare(folder: Path, config: TrainConfig, *, resume: bool) -> None:
    """Makes the folder of a new run; one of a run that is resumed stays.

    Raises:
        CheckpointError: it cannot be written.
    """
    known = read(folder)
    if jax.process_index() or (known is not None and resume):
        return
    try:
        if known is not None:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / RUN) as file:
            content = {"format": _FORMAT, "config": _plain(config)}
            file.write(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written ({error.strerror}).") from error


def read(folder: Path) -> dict[str, Any] | None:
    """What `run.json` of a folder says; None if there is none."""
    try:
        content = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if content.get("format") == _FORMAT else None


def _plain(config: TrainConfig) -> dict[str, Any]:
    return json.loads(json.dumps(configs.to_dict(config)))


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Holds the run for as long as this process lives.

    Raises:
        InputError: another process is at it.
    """
    if jax.process_index():
        yield
        return
    handle = os.open(folder / RUN, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InputError(
            f"another process is training in {folder}; wait for it, or stop it."
        ) from None
    finally:
        os.close(handle)
