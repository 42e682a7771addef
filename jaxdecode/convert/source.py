"""What every checkpoint format looks like once opened: a config, typed names, and lazy reads."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from jaxdecode.errors import (
    CheckpointError,
    CorruptCheckpointError,
    InputError,
    UnsupportedError,
)
from jaxdecode.models.config import ModelConfig, param_shapes

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


# Bounds along the leading axes of a tensor; those that follow are whole.
Box = tuple[slice, ...]


class TensorStore(Protocol):
    """Named tensors in the Hugging Face layout, read one at a time."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """Returns one tensor, or a box of it, reading no other tensor's bytes."""
        ...


class ReadParam(Protocol):
    """How parameters are read."""

    def __call__(self, name: str, part: slice | None = None) -> np.ndarray:
        """Returns a parameter, or a part of the axis that devices split it on (`dist.axes`).

        Of parameters that they do not split, it is a part of the first axis.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """An opened checkpoint of any format, seen through our flat parameter names.

    Attributes:
        path: what was opened.
        kind: "orbax" (ours), "safetensors" or "gguf".
        config: the model.
        dtypes: dtype name of every parameter, in the order of `param_shapes`.
        read: returns one parameter or a part of it; nothing is kept in memory between calls.
        files: every file whose bytes the parameters come from.
        tokenizer_dir: folder that may hold tokenizer files, or None.
        tokenizer_metadata: raw `tokenizer.*` fields of a GGUF file, else empty.
        token_ids: `bos_token_id` and the like, where the source names them.
        quantization: how many source tensors have each storage type (GGUF only).
    """

    path: Path
    kind: str
    config: ModelConfig
    dtypes: dict[str, str]
    read: ReadParam
    files: tuple[Path, ...]
    tokenizer_dir: Path | None = None
    tokenizer_metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    token_ids: dict[str, Any] = dataclasses.field(default_factory=dict)
    quantization: dict[str, int] = dataclasses.field(default_factory=dict)

    def num_bytes(self, dtype: str | None = None) -> int:
        """Bytes of all parameters as stored, or as they would be in `dtype`."""
        shapes = param_shapes(self.config)
        return sum(
            math.prod(shapes[name]) * DTYPES[dtype or stored].itemsize
            for name, stored in self.dtypes.items()
        )


def check_dtype(dtype: str | None) -> None:
    """Raises InputError unless `dtype` is None or a floating-point type we store."""
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} is not supported; use one of {', '.join(DTYPES)}.")


def cast(name: str, array: np.ndarray, dtype: str | None) -> np.ndarray:
    """Returns `array` in `dtype` (round to nearest even); refuses a cast that overflows."""
    if dtype is None or array.dtype == DTYPES[dtype]:
        return array
    with np.errstate(over="ignore"):
        out = array.astype(DTYPES[dtype])
    if dtype == "float16" and bool(np.any(np.isinf(out) & np.isfinite(array))):
        largest = float(np.abs(array[np.isfinite(array)]).max())
        raise CheckpointError(
            f"{name} holds {largest:g}, more than float16 can represent (65504); "
            "use dtype bfloat16 or float32."
        )
    return out


_MAX_DIM = 2**31 - 1
_MAX_LAYERS = 4096


def check_config(config: ModelConfig, where: str) -> ModelConfig:
    """Returns `config` if its numbers can describe a model; they may come from a hostile header.

    Raises:
        CorruptCheckpointError: naming the field, its value and what was expected.
    """
    for field in ("vocab_size", "num_layers", "hidden_size", "intermediate_size", "num_heads",
                  "num_kv_heads", "head_dim", "max_length"):  # fmt: skip
        value = getattr(config, field)
        limit = _MAX_LAYERS if field == "num_layers" else _MAX_DIM
        if type(value) is not int or not 0 < value <= limit:
            raise CorruptCheckpointError(
                f"{where}: {field} is {value!r}, expected an integer from 1 to {limit}."
            )
    if config.num_heads % config.num_kv_heads:
        raise CorruptCheckpointError(
            f"{where}: num_heads {config.num_heads} is not a multiple of "
            f"num_kv_heads {config.num_kv_heads}."
        )
    if config.head_dim % 2:
        raise CorruptCheckpointError(
            f"{where}: head_dim {config.head_dim} is odd; RoPE needs pairs."
        )
    windows = config.layer_windows
    if len(windows) != config.num_layers or any(
        type(w) is not int or not 0 <= w <= _MAX_DIM for w in windows
    ):
        raise CorruptCheckpointError(
            f"{where}: layer_windows must be {config.num_layers} integers from 0 on, got "
            f"{len(windows)}: {str(windows)[:80]}."
        )
    _check_floats(config, where)
    _check_denoiser(config, where)
    return config


def _check_denoiser(config: ModelConfig, where: str) -> None:
    if config.denoiser is None:
        return
    mask, block, shifted, inserts = (
        getattr(config.denoiser, name) for name in ("mask_token", "block", "shifted", "inserts")
    )
    if type(mask) is not int or not 0 <= mask < config.vocab_size:
        raise CorruptCheckpointError(
            f"{where}: the mask token is {mask!r}, expected a token id from 0 to "
            f"{config.vocab_size - 1}."
        )
    flags = {type(shifted), type(inserts)}
    if type(block) is not int or not 0 <= block <= _MAX_DIM or flags != {bool}:
        raise CorruptCheckpointError(
            f"{where}: blocks of {block!r}, shifted = {shifted!r} and inserts = {inserts!r}, "
            "expected an integer from 0 on, and true or false."
        )


def unsupported(key: str, value: Any, supported: str) -> UnsupportedError:
    """The error for a setting of config.json that would change the result and is not supported."""
    return UnsupportedError(
        f"config.json: {key} = {str(value)[:120]!r} is not supported; supported: {supported}."
    )


def _check_floats(config: ModelConfig, where: str) -> None:
    numbers = {name: getattr(config, name) for name in ("norm_eps", "embed_scale", "query_scale")}
    for rope in filter(None, (config.rope, config.local_rope)):
        numbers |= {f"rope {key}": value for key, value in dataclasses.asdict(rope).items()
                    if key != "scaling"}  # fmt: skip
    for name, value in numbers.items():
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise CorruptCheckpointError(
                f"{where}: {name} is {value!r}, expected a positive finite number."
            )
