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
from jaxdecode.train import config as configs
from jaxdecode.train.config import TrainConfig

RUN, STEPS = "run.json", "steps"
_FORMAT = "jaxdecode-run"


def prepare(folder: Path, config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Makes the folder of a new run, or checks that of one that is resumed.

    Raises:
        DestinationExistsError: there is a run already, and neither flag is given.
        InputError: it is a run with another config; the first difference is named.
        CheckpointError: the disk is full.
    """
    known = read(folder)
    settings = json.loads(json.dumps(configs.to_dict(config)))
    if known is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DestinationExistsError(f"{folder} exists and holds no run; choose another --out.")
    elif resume:
        found = configs.first_difference(known["config"], settings)
        if found is not None:
            key, old, new = found
            raise InputError(
                f"{folder} was begun with {key}={old!r}, and now it is {new!r}; resume with the "
                "config of the run, or begin another with --out."
            )
        return
    elif not overwrite:
        raise DestinationExistsError(
            f"{folder} holds a run already; --resume goes on with it, --overwrite begins anew, "
            "--out takes another folder."
        )
    if jax.process_index():
        return
    try:
        if known is not None:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / RUN) as file:
            file.write(json.dumps({"format": _FORMAT, "config": settings}, indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written ({error.strerror}).") from error


def read(folder: Path) -> dict[str, Any] | None:
    """What `run.json` of a folder says; None if there is none."""
    try:
        content = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if content.get("format") == _FORMAT else None


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
