"""Whole checkpoints at once: convert, inspect, verify, load."""

import contextlib
import dataclasses
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxdecode.convert import tokenizer_files
from jaxdecode.convert.atomic import atomic_directory
from jaxdecode.convert.checkpoint import TOKENIZER, hash_files, write_checkpoint
from jaxdecode.convert.open import open_source
from jaxdecode.convert.source import Source, cast, check_dtype
from jaxdecode.convert.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_gguf
from jaxdecode.errors import CorruptCheckpointError, InputError
from jaxdecode.models.config import ModelConfig, param_shapes

# Copied unchanged where the source is a folder; nothing that could be code is ever copied.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_SPARE_BYTES = 64 * 2**20


def convert(
    src: Path | str,
    dst: Path | str,
    *,
    to: Literal["orbax", "safetensors"] = "orbax",
    dtype: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Writes a checkpoint of any readable format as ours or as a Hugging Face folder.

    One group of parameters is in memory at a time. The destination appears whole or not at all.

    Args:
        src: our checkpoint, a Hugging Face folder, a .gguf or a .safetensors file.
        dst: directory to create.
        to: "orbax" (ours) or "safetensors" (Hugging Face folder).
        dtype: "float32", "bfloat16" or "float16"; None keeps what is stored (quantized tensors
            become float32).
        overwrite: replace an existing checkpoint at `dst`.
        progress: show a bar on standard error.

    Returns:
        The destination.

    Raises:
        InputError: unusable path or option.
        CheckpointError: damaged, unsafe or unsupported source; existing destination; full disk.
    """
    check_dtype(dtype)
    if to not in _WRITERS:
        raise InputError(f"to={to!r} is not a format; use 'orbax' or 'safetensors'.")
    dst = Path(dst).expanduser()
    if dst.absolute().resolve() == Path(src).expanduser().absolute().resolve():
        raise InputError(f"{dst} is both source and destination; choose another destination.")
    source = open_source(src)
    dtypes = {name: dtype or stored for name, stored in source.dtypes.items()}
    num_bytes = source.num_bytes(dtype) + _SPARE_BYTES
    with (
        atomic_directory(dst, overwrite=overwrite, num_bytes=num_bytes) as work,
        _bar(f"converting {source.path.name}", len(dtypes), progress) as advance,
    ):
        params = _cast_params(source, dtype, advance)
        _WRITERS[to](work, source, params, dtypes)
    return dst


def save_model(
    dst: Path, config: ModelConfig, params: Mapping[str, np.ndarray], like: Source
) -> None:
    """Writes parameters from memory as our checkpoint, with the tokenizer of another one.

    Args:
        dst: directory to create; a checkpoint there is replaced.
        config: the model.
        params: by flat name (`param_shapes`).
        like: whose tokenizer files and token ids the checkpoint gets.

    Raises:
        CheckpointError: the disk is full.
    """
    arrays = {name: params[name] for name in param_shapes(config)}
    num_bytes = sum(array.nbytes for array in arrays.values()) + _SPARE_BYTES
    with atomic_directory(dst, overwrite=True, num_bytes=num_bytes) as work:
        (work / TOKENIZER).mkdir()
        _write_tokenizer(like, work / TOKENIZER)
        write_checkpoint(
            work,
            config,
            iter(arrays.items()),
            dtypes={name: array.dtype.name for name, array in arrays.items()},
            token_ids=like.token_ids,
            provenance={"kind": "trained", "name": like.path.name},
        )


def read_params(source: Source, dtype: str | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the parameters of an opened checkpoint in the order of `param_shapes`.

    Args:
        source: what `open_source` returned.
        dtype: as in `convert`.

    Raises:
        CorruptCheckpointError: bytes of our own checkpoint are not as they were written.
    """
    check_dtype(dtype)
    return _cast_params(source, dtype, lambda: None)


def inspect(path: Path | str) -> dict[str, Any]:
    """Describes a checkpoint without converting it.

    Returns:
        Plain JSON values: path, kind, family, config, num_parameters, num_bytes, dtypes (number of
        parameters per dtype), quantization (GGUF tensors per type), fills_slots (how, None for
        autoregressive models), tokenizer, tensors.
    """
    source = open_source(path)
    shapes = param_shapes(source.config)
    return {
        "path": str(source.path),
        "kind": source.kind,
        "family": source.config.family,
        "config": dataclasses.asdict(source.config),
        "num_parameters": sum(math.prod(shape) for shape in shapes.values()),
        "num_bytes": source.num_bytes(),
        "dtypes": dict(Counter(source.dtypes.values())),
        "quantization": source.quantization,
        "fills_slots": _fills(source),
        "tokenizer": _tokenizer_kind(source),
        "token_ids": source.token_ids,
        "tensors": [
            {"name": name, "shape": list(shape), "dtype": source.dtypes[name]}
            for name, shape in shapes.items()
        ],
    }


def verify(path: Path | str, *, progress: bool = False) -> dict[str, Any]:
    """Reads everything and checks all that can be checked.

    Our checkpoints are compared with their SHA-256; the other formats have no checksum, so only
    their structure and that every value is finite can be vouched for.

    Returns:
        path, kind, checks (what was checked), fills_slots (as of `inspect`), num_parameters,
        files (SHA-256 by name).

    Raises:
        CorruptCheckpointError: on any damage.
    """
    source = open_source(path)
    shapes = param_shapes(source.config)
    with _bar(f"verifying {source.path.name}", len(shapes), progress) as advance:
        for name, array in _cast_params(source, None, advance):
            if array.shape != shapes[name]:
                raise CorruptCheckpointError(
                    f"{path}: {name} has shape {array.shape}, want {shapes[name]}."
                )
            if not np.isfinite(array.astype(np.float32, copy=False)).all():
                raise CorruptCheckpointError(f"{path}: {name} holds infinite or NaN values.")
    checks = ["structure", "shapes", "finite values"]
    return {
        "path": str(path),
        "kind": source.kind,
        "checks": ["sha256", *checks] if source.kind == "orbax" else checks,
        "fills_slots": _fills(source),
        "num_parameters": sum(math.prod(shape) for shape in shapes.values()),
        "files": _hashes(source),
    }


def _cast_params(
    source: Source, dtype: str | None, advance: Callable[[], None]
) -> Iterator[tuple[str, np.ndarray]]:
    for name in source.dtypes:
        yield name, cast(name, source.read(name), dtype)
        advance()


def _write_ours(
    work: Path, source: Source, params: Iterator[tuple[str, np.ndarray]], dtypes: dict[str, str]
) -> None:
    (work / TOKENIZER).mkdir()
    _write_tokenizer(source, work / TOKENIZER)
    write_checkpoint(
        work,
        source.config,
        params,
        dtypes=dtypes,
        token_ids=source.token_ids,
        # No full path: it could hold private names.
        provenance={"kind": source.kind, "name": source.path.name, "sha256": _hashes(source)},
    )


def _write_hf(
    work: Path, source: Source, params: Iterator[tuple[str, np.ndarray]], dtypes: dict[str, str]
) -> None:
    from jaxdecode.convert.safetensors import write_folder

    _write_tokenizer(source, work)
    write_folder(work, source.config, params, dtypes=dtypes, token_ids=source.token_ids)


_WRITERS = {"orbax": _write_ours, "safetensors": _write_hf}


def _hashes(source: Source) -> dict[str, str]:
    root = source.path if source.path.is_dir() else source.path.parent
    names = [file.relative_to(root).as_posix() for file in source.files]
    return dict(zip(names, hash_files(source.files), strict=True))


def read_tokenizer(source: Source) -> Tokenizer | None:
    """Returns the tokenizer that comes with a checkpoint, or None if there is none.

    Raises:
        CorruptCheckpointError: its files are damaged.
        UnsupportedError: its vocabulary is of a kind that is not supported.
    """
    if source.tokenizer_dir is not None:
        found = load_tokenizer(source.tokenizer_dir)
    else:
        metadata = source.tokenizer_metadata
        found = tokenizer_from_gguf(metadata) if metadata else None
    if found is None or source.config.denoiser is None:
        return found
    # The mask token stands for what is undecided: no text of a user may smuggle it in.
    return found.without(source.config.denoiser.mask_token)


def read_end_tokens(source: Source, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Returns the token ids that end a text: the tokenizer's, then what config.json says.

    A checkpoint without a tokenizer still ends where its own configuration says.
    """
    named = source.token_ids.get("eos_token_id")
    listed = named if isinstance(named, list) else [named]
    known = [t for t in listed if isinstance(t, int) and 0 <= t < source.config.vocab_size]
    return tuple(dict.fromkeys([*(tokenizer.stop_tokens if tokenizer else ()), *known]))


def _write_tokenizer(source: Source, folder: Path) -> None:
    if source.tokenizer_dir is not None:
        # Byte for byte, so that nothing is lost on the way to our checkpoint and back.
        for name in _TOKENIZER_FILES:
            if (source.tokenizer_dir / name).is_file():
                shutil.copyfile(source.tokenizer_dir / name, folder / name)
    elif (tokenizer := read_tokenizer(source)) is not None:
        tokenizer.save(folder)


def _fills(source: Source) -> str | None:
    return None if source.config.denoiser is None else str(source.config.denoiser)


def _tokenizer_kind(source: Source) -> str | None:
    if source.tokenizer_metadata:
        return f"gguf {source.tokenizer_metadata.get('tokenizer.ggml.model', 'unknown')}"
    if source.tokenizer_dir is not None:
        for name in _TOKENIZER_FILES[:2]:
            if (source.tokenizer_dir / name).is_file():
                return name
        if tokenizer_files.has_pair(source.tokenizer_dir):
            return " and ".join(tokenizer_files.PAIR)
    return None


@contextlib.contextmanager
def _bar(title: str, total: int, shown: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error; yields the function that advances it by one."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
