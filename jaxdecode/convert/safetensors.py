"""Hugging Face folders of safetensors, in and out."""

import collections
import functools
import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxdecode.convert import names
from jaxdecode.convert.hf_config import config_from_hf, config_to_hf
from jaxdecode.convert.hf_denoisers import with_mask_token
from jaxdecode.convert.source import DTYPES, Box, Source
from jaxdecode.errors import (
    CorruptCheckpointError,
    InputError,
    UnsafeCheckpointError,
)
from jaxdecode.models.config import ModelConfig

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD_BYTES = 5 * 10**9
_MAX_JSON_BYTES = 100 * 2**20
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CODES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def refuse_pickle(path: Path) -> None:
    """Raises UnsafeCheckpointError if `path` is a pickle file, or a folder of nothing else."""
    if path.is_dir():
        files = [p for p in path.iterdir() if p.suffix in _PICKLE_SUFFIXES]
        files += path.glob("pytorch_model*.bin.index.json")
        if not files or any(path.glob("*.safetensors")):
            return
        path = files[0]
    if path.suffix in _PICKLE_SUFFIXES or path.name.endswith(".bin.index.json"):
        raise UnsafeCheckpointError(
            f"{path} is a pickle checkpoint; opening one can run any code, so it is never opened. "
            "In an environment you trust, convert it once: transformers' "
            "AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(DST) writes safetensors."
        )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of sane size.

    Raises:
        CorruptCheckpointError: too large, not JSON, or not an object.
        InputError: the file cannot be read.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CorruptCheckpointError(f"{path}: too large for a configuration file.")
        out = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(out, dict):
        raise CorruptCheckpointError(f"{path}: expected a JSON object.")
    return out


def open_safetensors(path: Path) -> Source:
    """Opens a Hugging Face folder, or one .safetensors file that has config.json beside it.

    Raises:
        UnsafeCheckpointError: the folder only holds pickle files.
        CorruptCheckpointError: damaged header, missing shard or tensor, wrong shape.
        CheckpointError: a tensor that has no place in the model.
    """
    folder = path if path.is_dir() else path.parent
    refuse_pickle(path)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: config.json is missing; it says which model this is.")
    hf = read_json(folder / "config.json")
    config = config_from_hf(with_mask_token(hf, folder))
    store = SafetensorsStore(_tensor_files(path), str(path))
    names.check_tensors(config, store, str(path))
    text = hf["text_config"] if isinstance(hf.get("text_config"), dict) else {}
    return Source(
        path=path,
        kind="safetensors",
        config=config,
        dtypes=names.stored_dtypes(config, store),
        read=functools.partial(names.read_param, config, store),
        files=tuple(store.files),
        tokenizer_dir=folder,
        token_ids={k: v for k in _TOKEN_IDS if (v := hf.get(k, text.get(k))) is not None},
    )


def _tensor_files(path: Path) -> dict[Path, list[str] | None]:
    """Each file and the tensors its index promises in it (None: whatever it holds)."""
    if path.is_file():
        return {path: None}
    if (path / _INDEX).is_file():
        return _indexed_files(path)
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        what = "no .safetensors file" if not found else f"{len(found)} of them but no {_INDEX}"
        raise InputError(f"{path}: found {what}.")
    return {found[0]: None}


def _indexed_files(folder: Path) -> dict[Path, list[str] | None]:
    weight_map = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpointError(f"{folder / _INDEX}: weight_map is missing or empty.")
    shards: dict[Path, list[str] | None] = {}
    by_name: dict[str, list[str]] = collections.defaultdict(list)
    for tensor, name in weight_map.items():
        # Only plain names: an index must not reach outside its folder.
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise CorruptCheckpointError(f"{folder / _INDEX}: bad shard name {str(name)[:80]!r}.")
        by_name[name].append(tensor)
    for name, tensors in sorted(by_name.items()):
        refuse_pickle(folder / name)
        if not (folder / name).is_file():
            raise CorruptCheckpointError(
                f"{folder}: shard {name} with {len(tensors)} tensors of the index is missing."
            )
        shards[folder / name] = tensors
    return shards


class SafetensorsStore:
    """The tensors of one or several safetensors files."""

    def __init__(self, files: dict[Path, list[str] | None], where: str):
        self.files = list(files)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._file_of: dict[str, Path] = {}
        for path, promised in files.items():
            held = _guarded(path, self._scan)
            lacking = sorted(set(promised or ()) - held)
            if lacking:
                raise CorruptCheckpointError(
                    f"{where}: the index expects {lacking[:4]} in {path.name}, which lacks them."
                )

    def _scan(self, path: Path, file: Any) -> set[str]:
        held = set(file.keys())
        for name in sorted(held):
            if name in self._file_of:
                raise CorruptCheckpointError(
                    f"{path}: tensor {name} is also in {self._file_of[name].name}."
                )
            view = file.get_slice(name)
            self.shapes[name] = tuple(view.get_shape())
            code = str(view.get_dtype())
            self.dtypes[name] = _CODES.get(code, code)
            self._file_of[name] = path
        return held

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """Returns one tensor, or a box of it.

        The file is opened anew, so that no mapped page stays in memory.
        """

        def get(_: Path, file: Any) -> np.ndarray:
            view = file.get_slice(name)
            if tuple(view.get_shape()) != self.shapes[name]:
                raise CorruptCheckpointError(f"{self._file_of[name]}: changed while it was read.")
            return file.get_tensor(name) if box is None else view[box]

        return _guarded(self._file_of[name], get)


def _guarded(path: Path, use: Callable[[Path, Any], Any]) -> Any:
    """Calls use(path, open file); the library's errors become ours."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            return use(path, file)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as e:
        raise CorruptCheckpointError(f"{path}: damaged safetensors file ({e}).") from e
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error


def write_folder(
    folder: Path,
    config: ModelConfig,
    params: Iterable[tuple[str, np.ndarray]],
    *,
    dtypes: dict[str, str],
    token_ids: dict[str, Any],
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes weights and config.json, holding one parameter in memory at a time.

    The `safetensors` package only writes a dictionary of all tensors at once, so the header (a
    length and JSON) and the raw bytes are written here; tests read them back with the package.

    Args:
        folder: existing directory.
        config: the model.
        params: every parameter once, in the order of `param_shapes`, already in its final dtype.
        dtypes: final dtype of each parameter.
        token_ids: entries such as `eos_token_id` for config.json.
        shard_bytes: largest file; more weights are split and get an index.
    """
    shards = _plan(config, dtypes, shard_bytes)
    weight_map = {}
    remaining = iter(params)
    pending: dict[str, np.ndarray] = {}
    for number, shard in enumerate(shards, 1):
        name = _SINGLE
        if len(shards) > 1:
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, name)
        with (folder / name).open("wb") as file:
            file.write(_header(shard))
            for tensor in shard:
                while tensor not in pending:
                    pending |= names.split_param(config, *next(remaining))
                file.write(_bytes(pending.pop(tensor)))
    if len(shards) > 1:
        total = sum(entry[2] for shard in shards for entry in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    kinds = collections.Counter(dtypes.values())
    hf = config_to_hf(config) | token_ids | {"torch_dtype": kinds.most_common(1)[0][0]}
    (folder / "config.json").write_text(json.dumps(hf, indent=2, sort_keys=True) + "\n")


# Hugging Face name -> (dtype name, shape, number of bytes)
Shard = dict[str, tuple[str, tuple[int, ...], int]]


def _plan(config: ModelConfig, dtypes: dict[str, str], shard_bytes: int) -> list[Shard]:
    shards: list[Shard] = [{}]
    filled = 0
    for ours, theirs, elements, shape in names.hf_layout(config):
        size = elements * DTYPES[dtypes[ours]].itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][theirs] = (dtypes[ours], shape, size)
        filled += size
    return shards


def _header(shard: Shard) -> bytes:
    codes = {name: code for code, name in _CODES.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, size) in shard.items():
        entries[name] = {
            "dtype": codes[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
