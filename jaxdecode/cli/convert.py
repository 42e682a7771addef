"""`jaxdecode convert`: a checkpoint in another format."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from jaxdecode.cli.common import AcceptTerms, AsJson, Debug, Overwrite, print_json, show_progress
from jaxdecode.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a checkpoint in another format.

    Trained heads as their authors publish them (Medusa, ...) become ours, and ours theirs
    (--to published). The destination appears whole or not at all.
    """

    src: Annotated[str, Positional, arg(metavar="SRC")]
    """Checkpoint folder, .gguf or .safetensors file, short name, or hf:org/name."""
    dst: Annotated[str, Positional, arg(metavar="DST")]
    """Folder to create."""
    to: Literal["orbax", "safetensors", "published"] = "orbax"
    """orbax is our own format, with hashes; safetensors is a Hugging Face folder; published is the
    layout of the authors of heads. Heads that are not ours become ours without this option."""
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
        heads = self._heads(src)
        if heads is not None:
            return self._finish(Path(self.dst), "heads" if heads else "published", begin)
        if self.to == "published":
            raise InputError(f"{self.src} holds a model, not heads; use --to orbax or safetensors.")
        dtype = None if self.dtype == "keep" else self.dtype
        path = pipeline.convert(
            src, self.dst, to=self.to, dtype=dtype, overwrite=self.overwrite, progress=shown
        )
        return self._finish(path, self.to, begin)

    def _heads(self, src: Path) -> bool | None:
        """Converts heads: whether they are ours now, or None if these are no heads."""
        from jaxdecode.convert import heads, published

        ours = heads.is_heads(src)
        if not ours and published.recognise(src) is None:
            return None
        if self.to == "safetensors" or self.dtype != "keep":
            raise InputError("--to safetensors and --dtype are for models; heads stay as they are.")
        if ours and self.to != "published":
            raise InputError(f"{src} holds our own heads already; use --to published.")
        if ours:
            published.write(heads.load_heads(src), Path(self.dst), overwrite=self.overwrite)
        else:
            heads.save_heads(published.read(src), self.dst, overwrite=self.overwrite)
        return not ours

    def _finish(self, path: Path, to: str, begin: float) -> int:
        seconds = time.perf_counter() - begin
        num_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if self.json:
            print_json({"path": str(path), "to": to, "num_bytes": num_bytes, "seconds": seconds})
        else:
            print(f"{path}: {num_bytes / 1e6:.1f} MB ({to}) in {seconds:.1f} s")
        return 0
