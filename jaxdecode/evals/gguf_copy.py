"""A dequantised copy of a GGUF file: llama.cpp then reads the very weights that we compute with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import gguf
import numpy as np

_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16"}


def write(source: Path, destination: Path, *, kind: Literal["F32", "F16"]) -> Path:
    """Writes the copy with its matrices in `kind` and returns its path; vectors are F32 always."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(destination, reader.fields["general.architecture"].contents())
    for field in _copied_fields(reader):
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        item_type = field.types[-1] if is_array else None
        writer.add_key_value(field.name, field.contents(), field.types[0], item_type)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[kind]])
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        is_half = kind == "F16" and values.ndim > 1
        writer.add_tensor(tensor.name, values.astype(np.float16 if is_half else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return destination


def _copied_fields(reader: gguf.GGUFReader) -> Iterator[gguf.ReaderField]:
    replaced = {"general.architecture", "general.file_type"}
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in replaced:
            yield field
