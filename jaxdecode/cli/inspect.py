"""`jaxdecode inspect`: what a checkpoint holds."""

import dataclasses
from typing import Any

from jaxdecode.cli.common import (
    AcceptTerms,
    AsJson,
    CheckpointPath,
    Debug,
    Flag,
    print_json,
    print_table,
    show_progress,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect:
    """Describe a checkpoint without converting or loading it."""

    path: CheckpointPath
    tensors: Flag = False
    """List every tensor with its shape and number format."""
    json: AsJson = False
    accept_terms: AcceptTerms = False
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        from jaxdecode.convert import download, pipeline
        from jaxdecode.convert import heads as head_files

        path = download.resolve(self.path, accept_terms=self.accept_terms, progress=show_progress())
        is_heads = head_files.is_heads(path)
        found = head_files.describe(path) if is_heads else pipeline.inspect(path)
        tensors = found.pop("tensors")
        if self.json:
            print_json(found | ({"tensors": tensors} if self.tensors else {}))
            return 0
        for name, value in _heads_summary(found) if is_heads else _summary(found):
            print(f"{name + ':':<14} {value}")
        if self.tensors:
            print()
            rows = [(t["name"], "x".join(map(str, t["shape"])), t["dtype"]) for t in tensors]
            print_table(("TENSOR", "SHAPE", "DTYPE"), rows)
        return 0


def _summary(found: dict[str, Any]) -> list[tuple[str, str]]:
    config = found["config"]
    return [
        ("path", found["path"]),
        ("format", found["kind"]),
        ("family", found["family"]),
        ("writes", _writes(found["fills_slots"])),
        ("parameters", f"{found['num_parameters']:,}"),
        ("size", f"{found['num_bytes'] / 1e6:.1f} MB"),
        ("number format", _counts(found["dtypes"])),
        ("quantization", _counts(found["quantization"] or {}) or "none"),
        ("tokenizer", found["tokenizer"] or "none"),
        ("layers", f"{config['num_layers']}"),
        ("vocabulary", f"{config['vocab_size']:,}"),
        ("context", f"{config['max_length']:,} tokens"),
    ]


def _writes(fills: str | None) -> str:
    return "one token after the other" if fills is None else f"undecided slots ({fills})"


def _heads_summary(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("path", found["path"]),
        ("kind", found["kind"]),
        ("parameters", f"{found['num_parameters']:,}"),
        ("size", f"{found['num_bytes'] / 1e6:.1f} MB"),
        ("shape", _pairs(found["shape"])),
        ("target", _pairs(found["target"])),
        ("notes", _pairs(found["notes"]) or "none"),
    ]


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({number})" for name, number in counts.items())
