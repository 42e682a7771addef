"""What several commands share: option types, the compilation cache, JSON and plain tables."""

import ast
import json
import os
import sys
from collections.abc import Container, Iterable, Sequence
from typing import Annotated, Any, Literal

import tyro

from jaxdecode.errors import InputError

# The empty hint keeps "(default: False)" out of the help of every flag.
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
AsJson = Annotated[Flag, tyro.conf.arg(help="Print JSON on stdout.")]
AcceptTerms = Annotated[
    Flag, tyro.conf.arg(help="Accept the terms of use of a model that has some (asked once).")
]
Overwrite = Annotated[Flag, tyro.conf.arg(help="Replace the destination if it exists.")]
Debug = Annotated[Flag, tyro.conf.arg(help="Show the whole traceback of an error.")]
_MESH_HELP = (
    "Split the model over all devices: rows of a batch over data, heads, MLP and vocabulary over "
    "model."
)
MeshText = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="data=N,model=M", constructor=str, help_behavior_hint="", help=_MESH_HELP
    ),
]
Attention = Annotated[
    Literal["auto", "xla", "tpu", "gpu"],
    tyro.conf.arg(help="Who computes attention in decoding steps: XLA, or a kernel."),
]
CheckpointPath = Annotated[
    str,
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="PATH",
        help="Checkpoint folder, .gguf or .safetensors file, short name, or hf:org/name.",
    ),
]

# Compiling takes longer than reading the program back for all but the smallest programs.
_MIN_COMPILE_SECONDS = 0.2


def use_compile_cache() -> None:
    """Keeps compiled programs on disk between runs, unless JAX's own settings say something."""
    import jax

    from jaxdecode.paths import cache_dir

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)


def set_options(items: Iterable[str], flags: Container[str]) -> dict[str, Any]:
    """What --set gives, with values read as Python literals where they are some.

    Args:
        items: NAME=VALUE each.
        flags: names that are flags of the command, so not for --set.

    Raises:
        InputError: not of that form, a flag, or given twice.
    """
    options: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise InputError(f"--set {item!r} is not of the form NAME=VALUE.")
        if name in flags:
            raise InputError(f"--set {item!r}: use --{name.replace('_', '-')} for this option.")
        if name in options:
            raise InputError(f"--set {name}=... is given twice.")
        options[name] = _literal(value)
    return options


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=indent))


def note(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    print(text, file=sys.stderr)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns padded to their widest cell; lines are never wrapped, so that grep works."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def show_progress(asked: bool = False) -> bool:
    """Whether progress bars make sense: a person watches stderr, or asked for them."""
    return asked or sys.stderr.isatty()
