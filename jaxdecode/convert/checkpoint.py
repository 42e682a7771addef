"""Our checkpoint: Orbax arrays and tokenizer files under a manifest that vouches for every byte.

    manifest.json   format, model configuration, dtype and pieces of every parameter, size and
                    SHA-256 of every other file, provenance, and a digest of itself
    params/<group>  one Orbax item per group of parameters, so that writing never needs the whole
                    model in memory; large parameters lie in pieces (`convert.pieces`)
    tokenizer/      tokenizer files, possibly none

Orbax's own storage has no checksum of the data, so without the manifest half of all single-bit
flips would load silently. Opening checks the presence and size of everything and the bytes of all
but the parameters; those are checked when they are read, by whoever reads them.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jaxdecode
from jaxdecode.convert import pieces
from jaxdecode.convert.source import DTYPES, Source, check_config
from jaxdecode.errors import CheckpointError, CorruptCheckpointError, InputError
from jaxdecode.models.config import FAMILIES, Denoiser, ModelConfig, Rope, param_shapes

FORMAT = "jaxdecode-checkpoint"
# 2: output kernels became [out, in]; a square one of version 1 would load silently transposed.
# 3: large parameters lie in pieces.
FORMAT_VERSION = 3
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
_GROUP_BYTES = 64 * 2**20
_MAX_MANIFEST_BYTES = 64 * 2**20


def hash_files(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of each file; on several threads, because hashing releases the interpreter lock."""
    with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(_sha256, paths))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checkpoint(
    folder: Path,
    config: ModelConfig,
    params: Iterable[tuple[str, np.ndarray]],
    *,
    dtypes: dict[str, str],
    token_ids: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Writes parameters and the manifest into an existing directory (see `atomic_directory`).

    Args:
        folder: may already hold `tokenizer/`, which the manifest then covers.
        config: the model.
        params: every parameter once, in the order of `param_shapes`, already in its final dtype.
        dtypes: final dtype of each parameter.
        token_ids: entries such as `eos_token_id`.
        provenance: what the checkpoint was made from.
    """
    remaining = iter(params)
    groups = _group(config, dtypes)
    counts = {n: pieces.count(n, shape, dtypes[n]) for n, shape in param_shapes(config).items()}
    for number, group in enumerate(groups):
        arrays = {name: array for name, array in (next(remaining) for _ in group)}
        pieces.save(folder / pieces.FOLDER / f"{number:04}", arrays, counts)
    body = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "jaxdecode": jaxdecode.__version__,
        "config": dataclasses.asdict(config),
        "dtypes": dtypes,
        "groups": groups,
        "pieces": counts,
        "token_ids": token_ids,
        "source": provenance,
        "files": _list_files(folder),
    }
    (folder / MANIFEST).write_bytes(_encode(body))


def _group(config: ModelConfig, dtypes: dict[str, str]) -> list[list[str]]:
    groups: list[list[str]] = []
    filled = _GROUP_BYTES
    for name, shape in param_shapes(config).items():
        if filled >= _GROUP_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += int(np.prod(shape)) * DTYPES[dtypes[name]].itemsize
    return groups


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for base, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files + [f for f in folders if (Path(base) / f).is_symlink()]):
            path = Path(base) / name
            relative = path.relative_to(folder).as_posix()
            if relative != MANIFEST:
                yield relative, path


def _list_files(folder: Path) -> dict[str, dict[str, Any]]:
    found = dict(_walk(folder))
    digests = hash_files(found.values())
    return {
        name: {"size": path.stat().st_size, "sha256": digest}
        for (name, path), digest in zip(found.items(), digests, strict=True)
    }


def _encode(body: dict[str, Any]) -> bytes:
    """The one byte string that stands for a manifest, its digest included."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps(body | {"digest": digest}, indent=1, sort_keys=True) + "\n").encode()


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is meant to be one of ours, damaged or not."""
    return (path / MANIFEST).exists() or (path / pieces.FOLDER).is_dir()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest and checks that it is exactly what was written.

    Raises:
        CorruptCheckpointError: missing, altered, or of another format.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise CorruptCheckpointError(f"{path}: too large for a manifest.")
        raw = path.read_bytes()
        body = json.loads(raw)
        body.pop("digest")
        intact = _encode(body) == raw
        version = (body["format"], body["version"])
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{folder}: {MANIFEST} is missing.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path}: damaged manifest ({error}).") from error
    if not intact:
        raise CorruptCheckpointError(f"{path}: the manifest was altered; its digest does not fit.")
    if version != (FORMAT, FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: format {version} is not supported; this version of jaxdecode reads "
            f"{(FORMAT, FORMAT_VERSION)}. Convert the original again."
        )
    if not _well_formed(body):
        raise CorruptCheckpointError(f"{path}: the manifest lacks entries or has unusable ones.")
    return body


def _well_formed(body: dict[str, Any]) -> bool:
    """Whether a manifest has the shape the code below relies on; its digest can be forged too."""
    groups, dtypes, files = body.get("groups"), body.get("dtypes"), body.get("files")
    counts = body.get("pieces")
    return (
        isinstance(body.get("config"), dict)
        and isinstance(body.get("token_ids"), dict)
        and isinstance(groups, list)
        and all(isinstance(group, list) for group in groups)
        and isinstance(dtypes, dict)
        and all(isinstance(dtype, str) and dtype in DTYPES for dtype in dtypes.values())
        and isinstance(counts, dict)
        and all(type(number) is int and number > 0 for number in counts.values())
        and isinstance(files, dict)
        and all(isinstance(entry, dict) and {"size", "sha256"} <= entry.keys()
                for entry in files.values())
    )  # fmt: skip


def check_names(folder: Path, manifest: dict[str, Any]) -> None:
    """Checks that the files are those of the manifest, by name and size.

    Raises:
        CorruptCheckpointError: naming the missing, extra or altered files.
    """
    found = dict(_walk(folder))
    wanted = manifest["files"]
    for problem, names in (
        ("missing", wanted.keys() - found.keys()),
        ("not in the manifest", found.keys() - wanted.keys()),
        ("a link", {name for name, path in found.items() if path.is_symlink()}),
    ):
        if names:
            raise CorruptCheckpointError(f"{folder}: {problem}: {sorted(names)[:4]}.")
    try:
        sizes = {name: path.stat().st_size for name, path in found.items()}
    except OSError as error:
        raise CorruptCheckpointError(f"{folder}: unreadable file ({error}).") from error
    _refuse(folder, [name for name, size in sizes.items() if size != wanted[name]["size"]])


def check_bytes(folder: Path, manifest: dict[str, Any], names: Sequence[str]) -> None:
    """Checks the SHA-256 of files.

    Raises:
        CorruptCheckpointError: naming the altered files.
    """
    try:
        digests = zip(names, hash_files(folder / name for name in names), strict=True)
        wrong = [name for name, digest in digests if digest != manifest["files"][name]["sha256"]]
    except OSError as error:
        raise CorruptCheckpointError(f"{folder}: unreadable file ({error}).") from error
    _refuse(folder, wrong)


def _refuse(folder: Path, wrong: Sequence[str]) -> None:
    if wrong:
        raise CorruptCheckpointError(f"{folder}: damaged (size or SHA-256 differs): {wrong[:4]}.")


def config_from_manifest(manifest: dict[str, Any], where: str) -> ModelConfig:
    """The model configuration, checked field by field."""
    try:
        fields = dict(manifest["config"])
        fields["layer_windows"] = tuple(fields["layer_windows"])
        for key in ("rope", "local_rope"):
            fields[key] = None if fields[key] is None else Rope(**fields[key])
        if fields.get("denoiser") is not None:
            fields["denoiser"] = Denoiser(**fields["denoiser"])
        config = ModelConfig(**fields)
        if config.family not in FAMILIES or config.rope is None:
            raise ValueError(f"family {config.family!r} or its rope is not known")
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(f"{where}: unusable configuration ({error}).") from error
    return check_config(config, where)


def open_checkpoint(folder: Path) -> Source:
    """Opens our checkpoint, after checking all of it but the parameters, which reading checks.

    Raises:
        CorruptCheckpointError: anything is missing, extra or altered.
        CheckpointError: it was written by another version of the format.
    """
    manifest = read_manifest(folder)
    check_names(folder, manifest)
    config = config_from_manifest(manifest, str(folder))
    shapes, dtypes, counts = param_shapes(config), manifest["dtypes"], manifest["pieces"]
    groups: list[list[str]] = manifest["groups"]
    if (
        [n for group in groups for n in group] != list(shapes)
        or not dtypes.keys() == counts.keys() == shapes.keys()
        or not all(pieces.divides(n, shape, counts[n]) for n, shape in shapes.items())
    ):
        raise CorruptCheckpointError(f"{folder}: the manifest's parameters do not fit its model.")
    files = manifest["files"]
    reader = pieces.Reader(
        folder,
        config,
        dtypes=dtypes,
        groups=groups,
        counts=counts,
        files=list(files),
        check=functools.partial(check_bytes, folder, manifest),
    )
    check_bytes(folder, manifest, sorted(files.keys() - reader.files))
    tokenizer = folder / TOKENIZER
    return Source(
        path=folder,
        kind="orbax",
        config=config,
        dtypes={name: dtypes[name] for name in shapes},
        read=reader.read,
        files=tuple(folder / name for name in files if name.startswith(pieces.FOLDER)),
        tokenizer_dir=tokenizer if tokenizer.is_dir() else None,
        token_ids=manifest["token_ids"],
    )
