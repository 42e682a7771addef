"""A GGUF header, walked with every length checked before it is trusted.

Types, block sizes and dequantisation come from the `gguf` package. Its reader is not used: it makes
several NumPy views per vocabulary entry (2 s for 49,152 tokens, 14 s for 262,144) and it trusts the
lengths it finds, so a check beforehand would have to walk the same bytes anyway.
"""

import dataclasses
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGUF_MAGIC,
    GGMLQuantizationType,
    GGUFValueType,
)

from jaxdecode.errors import CorruptCheckpointError, UnsupportedError

_VERSIONS = (2, 3)
_MAX_DIMS = 4
_MAX_NAME = 65_535
_MAX_ELEMENTS = 2**48
_MAX_ALIGNMENT = 2**16
# Fewest bytes a metadata entry (key length, type, value) and a tensor entry can take.
_MIN_FIELD, _MIN_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8
_SCALARS: dict[int, str] = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.FLOAT64: "<f8",
    GGUFValueType.BOOL: "?",
}
_LENGTH = struct.Struct("<Q")


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies.

    Attributes:
        shape: in NumPy order, outermost first (GGUF stores it reversed).
        kind: storage type.
        offset: first byte in the file.
        num_bytes: bytes as stored.
    """

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Header:
    """Metadata (lists stay Python lists) and tensors of one file, in file order."""

    fields: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> Header:
    """Parses and validates the header; reads no tensor data.

    Raises:
        CorruptCheckpointError: anything out of bounds, duplicated or undecodable.
        UnsupportedError: a version or byte order we do not read.
    """
    size = path.stat().st_size
    if size < 24:
        raise CorruptCheckpointError(f"{path}: {size} bytes are too few for a GGUF file.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Walk(path, data).header()


class _Walk:
    """A cursor over the mapped file; every read first checks that it stays inside."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.size, self.at = path, data, len(data), 0

    def fail(self, what: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            f"{self.path}: damaged GGUF header at byte {self.at}: {what}."
        )

    def need(self, count: int) -> None:
        if count > self.size - self.at:
            raise self.fail(f"{count} bytes are announced but the file has {self.size - self.at}")

    def number(self, code: str) -> int:
        width = struct.calcsize(code)
        self.need(width)
        (value,) = struct.unpack_from(code, self.data, self.at)
        self.at += width
        return value

    def text(self, longest: int) -> str:
        length = self.number("<Q")
        if length > longest:
            raise self.fail(f"a string of {length} bytes, at most {longest} are allowed")
        self.need(length)
        raw = self.data[self.at : self.at + length]
        try:
            out = raw.decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"a string is not UTF-8 ({error.reason})") from error
        self.at += length
        return out

    def header(self) -> Header:
        if self.number("<I") != GGUF_MAGIC:
            self.at = 0
            raise self.fail("the file does not start with the GGUF magic")
        version = self.number("<I")
        if version not in _VERSIONS:
            raise UnsupportedError(
                f"{self.path}: GGUF version {version} (or byte order) is not supported; "
                f"supported: little-endian versions {_VERSIONS}."
            )
        num_tensors, num_fields = self.number("<Q"), self.number("<Q")
        for what, count, least in (
            ("metadata entries", num_fields, _MIN_FIELD),
            ("tensors", num_tensors, _MIN_TENSOR),
        ):
            if count * least > self.size:
                raise self.fail(f"{count} {what} cannot fit into {self.size} bytes")
        fields = self._fields(num_fields)
        return Header(fields, self._tensors(num_tensors, self._alignment(fields)))

    def _fields(self, count: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for _ in range(count):
            key = self.text(_MAX_NAME)
            if key in fields:
                raise self.fail(f"metadata key {key!r} occurs twice")
            fields[key] = self._value(self.number("<I"), key)
        return fields

    def _value(self, kind: int, key: str) -> Any:
        if kind == GGUFValueType.STRING:
            return self.text(self.size)
        if kind == GGUFValueType.ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self.fail(f"metadata {key!r} has unknown type {kind}")
        return self._numbers(kind, 1)[0]

    def _array(self, key: str) -> list[Any]:
        kind, count = self.number("<I"), self.number("<Q")
        if kind == GGUFValueType.STRING:
            if count * 8 > self.size - self.at:
                raise self.fail(f"{key!r} announces {count} strings")
            return self._strings(count, key)
        if kind not in _SCALARS:
            raise self.fail(f"{key!r} is an array of unsupported type {kind}")
        return self._numbers(kind, count)

    def _numbers(self, kind: int, count: int) -> list[Any]:
        dtype = np.dtype(_SCALARS[kind])
        self.need(count * dtype.itemsize)
        out = np.frombuffer(self.data[self.at : self.at + count * dtype.itemsize], dtype).tolist()
        self.at += count * dtype.itemsize
        return out

    def _strings(self, count: int, key: str) -> list[str]:
        """The hot loop: vocabularies have hundreds of thousands of entries."""
        data, at, size, out = self.data, self.at, self.size, []
        try:
            for _ in range(count):
                (length,) = _LENGTH.unpack_from(data, at)
                at += 8
                if length > size - at:
                    raise self.fail(f"entry {len(out)} of {key!r} announces {length} bytes")
                out.append(data[at : at + length].decode())
                at += length
        except (UnicodeDecodeError, struct.error) as error:
            raise self.fail(f"entry {len(out)} of {key!r} is unreadable ({error})") from error
        self.at = at
        return out

    def _alignment(self, fields: dict[str, Any]) -> int:
        alignment = fields.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if (
            type(alignment) is not int
            or not 0 < alignment <= _MAX_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise self.fail(f"general.alignment {alignment!r} is not a power of two")
        return alignment

    def _tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        relative: dict[str, TensorInfo] = {}
        for _ in range(count):
            name = self.text(_MAX_NAME)
            if name in relative:
                raise self.fail(f"tensor {name!r} occurs twice")
            relative[name] = self._tensor(name, alignment)
        start = -(-self.at // alignment) * alignment
        out = {n: dataclasses.replace(t, offset=start + t.offset) for n, t in relative.items()}
        end = start
        for name, info in sorted(out.items(), key=lambda item: item[1].offset):
            if info.offset + info.num_bytes > self.size:
                raise CorruptCheckpointError(
                    f"{self.path}: truncated or damaged: tensor {name} ends at byte "
                    f"{info.offset + info.num_bytes}, the file has {self.size}."
                )
            if info.offset < end:
                raise self.fail(f"tensor {name} overlaps another one")
            end = info.offset + info.num_bytes
        return out

    def _tensor(self, name: str, alignment: int) -> TensorInfo:
        num_dims = self.number("<I")
        if not 0 < num_dims <= _MAX_DIMS:
            raise self.fail(f"tensor {name} has {num_dims} dimensions, expected 1 to {_MAX_DIMS}")
        shape = tuple(self.number("<Q") for _ in range(num_dims))[::-1]
        raw_kind, offset = self.number("<I"), self.number("<Q")
        elements = 1
        for dim in shape:
            elements *= dim
        if not 0 < elements <= _MAX_ELEMENTS:
            raise self.fail(f"tensor {name} has shape {shape}")
        try:
            kind = GGMLQuantizationType(raw_kind)
        except ValueError as error:
            raise self.fail(f"tensor {name} has unknown type {raw_kind}") from error
        block, width = GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise self.fail(
                f"rows of {name} ({shape[-1]}) are no multiple of {kind.name}'s {block}"
            )
        if offset % alignment:
            raise self.fail(f"tensor {name} lies at {offset}, not a multiple of {alignment}")
        return TensorInfo(shape, kind, offset, elements // block * width)
