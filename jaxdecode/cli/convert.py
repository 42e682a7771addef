"""`jaxdecode convert`: a checkpoint in another format."""

import dataclasses
import time
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from jaxdecode.cli.common import AcceptTerms, AsJson, Debug, Overwrite, print_json, show_progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a checkpoint in another format.

    The destination appears whole or not at all.
    """

    src: Annotated[str, Positional, arg(metavar="SRC")]
    """Checkpoint folder, .gguf or .safetensors file, short name, or hf:org/name."""
    dst: Annotated[str, Positional, arg(metavar="DST")]
    """Folder to create."""
    to: Literal["orbax", "safetensors"] = "orbax"
    """orbax is our own format, with hashes; safetensors is a Hugging Face folder."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Number format to write; keep is the stored one (quantized weights become float32)."""
    overwrite: Overwrite = False
    json: AsJson = False
    accept_terms: AcceptTerms = False
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        from jaxdecode.convert import download, pipeline

        shown = show_progress()
        src = download.resolve(self.src, accept_terms=self.accept_terms, progress=shown)
        begin = time.perf_counter()
        dtype = None if self.dtype == "keep" else self.dtype
        path = pipeline.convert(
            src, self.dst, to=self.to, dtype=dtype, overwrite=self.overwrite, progress=shown
        )
        seconds = time.perf_counter() - begin
        num_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if self.json:
            print_json(
                {"path": str(path), "to": self.to, "num_bytes": num_bytes, "seconds": seconds}
            )
        else:
            print(f"{path}: {num_bytes / 1e6:.1f} MB ({self.to}) in {seconds:.1f} s")
        return 0
