"""What several commands share: option types, the compilation cache, JSON and plain tables."""

import ast
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

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
# What JAX takes for no in its environment variables.
_OFF = ("n", "no", "f", "false", "off", "0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Everywhere:
    """Taken by every command, before or after its name."""

    quiet: Flag = False
    """Results and errors only: no notes, no progress bars."""
    verbose: Flag = False
    """Also say what was compiled or read back, the time it took, and the memory it needed."""
    offline: Flag = False
    """Use no network, as with JAXDECODE_OFFLINE=1: what would be fetched is an error."""


# How loud the notes of this process are; `speak_as` sets it once per command line.
_voice = Everywhere()


def speak_as(options: Everywhere) -> None:
    """Makes notes, details and progress follow --quiet and --verbose.

    Raises:
        InputError: both are given.
    """
    global _voice
    _voice = Everywhere()
    if options.quiet and options.verbose:
        raise InputError("--quiet and --verbose are opposites; choose one.")
    _voice = options


def compile_cache() -> Path | None:
    """The folder of compiled programs; None if JAX_ENABLE_COMPILATION_CACHE turns it off."""
    from jaxdecode.paths import cache_dir

    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in _OFF:
        return None
    return Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or cache_dir() / "compiled")


def use_compile_cache() -> None:
    """Keeps compiled programs on disk between runs, unless JAX's own settings say something."""
    import jax

    folder = compile_cache()
    if _voice.verbose:
        detail(f"compiled programs: {folder or 'not kept (JAX_ENABLE_COMPILATION_CACHE)'}")
        _count_programs()
    if folder is None:
        return
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)


@dataclasses.dataclass
class _Programs:
    """Programs that were needed, those of them that were read from disk, and the time for all."""

    needed: int = 0
    read: int = 0
    seconds: float = 0.0


_programs = _Programs()


@functools.cache
def _count_programs() -> None:
    """Begins to count; once per process."""
    from jax import monitoring

    def timed(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("/backend_compile_duration"):
            _programs.needed += 1
            _programs.seconds += duration_secs

    def counted(event: str, **_: Any) -> None:
        _programs.read += event.endswith("/compilation_cache/cache_hits")

    monitoring.register_event_duration_secs_listener(timed)
    monitoring.register_event_listener(counted)


def say_what_it_took(seconds: float) -> None:
    """The last line of --verbose: time, programs and memory of this process."""
    import resource

    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    made = _programs.needed - _programs.read
    programs = f"{made} programs compiled, {_programs.read} read back ({_programs.seconds:.1f} s)"
    detail(f"{seconds:.1f} s in all; {programs}; peak memory {peak / 1e9:.2f} GB")


def constraint_options(
    json_schema: str | None, regex: str | None, grammar: str | None
) -> dict[str, Any]:
    """Options that constrain a text, from files and text; only those that were given.

    Raises:
        InputError: a file cannot be read, or is not what it should be.
    """
    options: dict[str, Any] = {} if regex is None else {"regex": regex}
    if json_schema is not None:
        try:
            options["json_schema"] = json.loads(_read(json_schema, "--json-schema"))
        except ValueError as error:
            raise InputError(f"--json-schema {json_schema}: not valid JSON ({error}).") from error
    if grammar is not None:
        options["grammar"] = _read(grammar, "--grammar")
    return options


def _read(path: str, flag: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {path} cannot be read: {error}.") from error


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
    """A line for the person at the terminal, on stderr; --quiet leaves it out."""
    if not _voice.quiet:
        complain(text)


def detail(text: str) -> None:
    """A line that only --verbose shows, on stderr."""
    if _voice.verbose:
        complain(text)


def complain(text: str) -> None:
    """A line on stderr that nothing leaves out."""
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
    return asked or (sys.stderr.isatty() and not _voice.quiet)


def colours(stream: TextIO) -> bool:
    """Whether text on this stream may have colours: a terminal, and NO_COLOR is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
