"""How parameters lie in our checkpoint: Orbax items, with large parameters cut into pieces.

A parameter that devices share is cut along the axis it is split on (`dist.axes`), and every piece
is an array of its own: a host reads, and checks, the pieces of its own devices only.
"""

import contextlib
import errno
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdecode.convert.source import DTYPES
from jaxdecode.dist import axes
from jaxdecode.errors import CheckpointError, CorruptCheckpointError
from jaxdecode.models.config import ModelConfig, param_shapes

FOLDER = "params"
# Pieces are not made smaller than this: every one costs two files.
_PIECE_BYTES = 4 * 2**20
_MAX_PIECES = 64


def count(name: str, shape: tuple[int, ...], dtype: str) -> int:
    """Into how many pieces a parameter is cut: a power of two that divides its split axis."""
    room = min(_MAX_PIECES, math.prod(shape) * DTYPES[dtype].itemsize // _PIECE_BYTES)
    pieces = 1
    while 2 * pieces <= room and divides(name, shape, 2 * pieces):
        pieces *= 2
    return pieces


def divides(name: str, shape: tuple[int, ...], pieces: int) -> bool:
    """Whether a parameter can be cut into so many equal pieces."""
    axis = axes.split_of(name, len(shape))
    if axis is None:
        return pieces == 1
    return pieces <= _MAX_PIECES and shape[axis] % pieces == 0


def save(path: Path, arrays: dict[str, np.ndarray], counts: dict[str, int]) -> None:
    """Writes parameters as one Orbax item, each under `<name>.<piece>`.

    Raises:
        CheckpointError: it could not be written.
        OSError: the disk is full.
    """
    import orbax.checkpoint as ocp

    tree = {}
    for name, array in arrays.items():
        axis = axes.split_of(name, array.ndim) or 0
        for number, piece in enumerate(np.split(array, counts[name], axis)):
            tree[f"{name}.{number}"] = np.ascontiguousarray(piece)
    # One file per piece instead of one database. Compression would cost more time than it saves:
    # float32 weights shrink by a tenth.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, use_ocdbt=False)
    with _without_ocdbt_warnings(), ocp.Checkpointer(handler) as writer:
        try:
            writer.save(path.absolute(), tree)
        except (ValueError, RuntimeError) as error:
            # TensorStore reports a full disk as a plain error with the system's text in it; given
            # back its number, `atomic_directory` can say what was needed where.
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise CheckpointError(f"{path}: could not be written ({error}).") from error


@contextlib.contextmanager
def _without_ocdbt_warnings() -> Iterator[None]:
    """Orbax warns that it finds no database, which it was told not to write."""

    def keep(record: logging.LogRecord) -> bool:
        return "OCDBT" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


class Reader:
    """Reads parameters of a checkpoint by name, whole or in part.

    Args:
        folder: the checkpoint.
        config: its model.
        dtypes: dtype name of every parameter.
        groups: names of the parameters of every Orbax item.
        counts: number of pieces of every parameter.
        files: all files of the checkpoint, by name below it.
        check: raises unless the files of these names are as they were written.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        *,
        dtypes: dict[str, str],
        groups: Sequence[Sequence[str]],
        counts: dict[str, int],
        files: Sequence[str],
        check: Callable[[list[str]], None],
    ):
        self._folder, self._dtypes, self._counts, self._check = folder, dtypes, counts, check
        self._shapes = param_shapes(config)
        group_of = {name: number for number, group in enumerate(groups) for name in group}
        self._path = {name: f"{FOLDER}/{group_of[name]:04}/{name}" for name in self._shapes}
        self._files: dict[str, list[str]] = {
            f"{path}.{number}": []
            for name, path in self._path.items()
            for number in range(counts[name])
        }
        for file in files:
            self._files.get(file.rpartition("/")[0], []).append(file)

    @property
    def files(self) -> frozenset[str]:
        """Names of the files that are checked when they are read."""
        return frozenset(file for files in self._files.values() for file in files)

    def read(self, name: str, part: slice | None = None) -> np.ndarray:
        """A parameter, or the part from `start` to `stop` of the axis that devices split it on.

        Of parameters that they do not split, it is a part of the first axis.

        Raises:
            CorruptCheckpointError: a piece is not as it was written.
        """
        shape = self._shapes[name]
        axis = axes.split_of(name, len(shape)) or 0
        length = shape[axis] // self._counts[name]
        part = part or slice(0, shape[axis])
        first, last = part.start // length, -(-part.stop // length)
        paths = [f"{self._path[name]}.{number}" for number in range(first, last)]
        self._check([file for path in paths for file in self._files[path]])
        piece = (*shape[:axis], length, *shape[axis + 1 :])
        arrays = _load([self._folder / path for path in paths], piece, self._dtypes[name])
        out = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis)
        within = slice(part.start - first * length, part.stop - first * length)
        return out[(slice(None),) * axis + (within,)]


def _load(paths: Sequence[Path], shape: tuple[int, ...], dtype: str) -> list[np.ndarray]:
    """Arrays of one shape and dtype, read at the same time."""
    # Not through Orbax, which cannot restore arrays one by one without the metadata of all.
    import tensorstore

    specs = [
        {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path.absolute()}/"}}
        for path in paths
    ]
    try:
        opened: list[Any] = [tensorstore.open(spec, open=True) for spec in specs]
        stores = [store.result() for store in opened]
        for path, store in zip(paths, stores, strict=True):
            if store.shape != shape or store.dtype.numpy_dtype != DTYPES[dtype]:
                raise CorruptCheckpointError(
                    f"{path} is {store.dtype.name} {store.shape}, want {dtype} {shape}."
                )
        reads = [store.read() for store in stores]
        return [np.asarray(read.result()) for read in reads]
    except (ValueError, RuntimeError, OSError, KeyError, TypeError, NotImplementedError) as error:
        # The bytes are as written, so this is a checkpoint from an incompatible version or a
        # deliberate forgery.
        raise CorruptCheckpointError(f"{paths[0]}: cannot be read ({error}).") from error
