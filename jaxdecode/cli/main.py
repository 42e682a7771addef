"""The entry point: reads the command line, runs one command, turns errors into one line."""

import contextlib
import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Annotated

import tyro
from tyro.conf import CascadeSubcommandArgs, OmitSubcommandPrefixes, subcommand

from jaxdecode.cli import machine, packages
from jaxdecode.cli.bench import Bench
from jaxdecode.cli.bench_compare import BenchCompare
from jaxdecode.cli.common import (
    Everywhere,
    colours,
    complain,
    note,
    say_what_it_took,
    speak_as,
)
from jaxdecode.cli.completion import Completion
from jaxdecode.cli.convert import Convert
from jaxdecode.cli.distill import Distill
from jaxdecode.cli.doctor import Doctor
from jaxdecode.cli.exactness import Exactness
from jaxdecode.cli.generate import Generate
from jaxdecode.cli.inspect import Inspect
from jaxdecode.cli.merge import Merge
from jaxdecode.cli.methods import Methods
from jaxdecode.cli.models import Models
from jaxdecode.cli.plan import Plan
from jaxdecode.cli.show import Show
from jaxdecode.cli.train import Train
from jaxdecode.cli.tree import Tree
from jaxdecode.cli.verify import Verify
from jaxdecode.errors import InputError, JaxdecodeError

_DESCRIPTION = (
    "Decoding for language models in JAX. "
    "`jaxdecode COMMAND --help` explains a command; `jaxdecode --version` prints versions, with "
    "--verbose devices too. Exit codes: 0 done, 1 failed, 2 input that cannot be used, "
    "130 Ctrl-C, 141 the reader went away, 143 ended by SIGTERM after saving."
)

Command = (
    Annotated[Generate, subcommand("generate")]
    | Annotated[Merge, subcommand("merge")]
    | Annotated[Show, subcommand("show")]
    | Annotated[Convert, subcommand("convert")]
    | Annotated[Models, subcommand("models")]
    | Annotated[Inspect, subcommand("inspect")]
    | Annotated[Verify, subcommand("verify")]
    | Annotated[Methods, subcommand("methods")]
    | Annotated[Bench, subcommand("bench")]
    | Annotated[BenchCompare, subcommand("bench-compare")]
    | Annotated[Exactness, subcommand("exactness")]
    | Annotated[Plan, subcommand("plan")]
    | Annotated[Tree, subcommand("tree")]
    | Annotated[Distill, subcommand("distill")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Doctor, subcommand("doctor")]
    | Annotated[Completion, subcommand("completion")]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommandLine:
    """All that a command line says."""

    command: OmitSubcommandPrefixes[Command]
    everywhere: Annotated[Everywhere, CascadeSubcommandArgs] = Everywhere()
    """Options of every command."""


USAGE_ERROR = 2
OTHER_ERROR = 1
# As the shell counts commands that a signal ended: 128 + SIGINT, 128 + SIGPIPE.
INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    0 is success, 2 input that cannot be used, 1 any other error, 130 Ctrl-C, 141 a closed pipe.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(args)
    except BrokenPipeError:
        # Whoever read us has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _main(args: Sequence[str]) -> int:
    if "--version" in args and set(args) <= {"--version", "--verbose"}:
        return _print_versions(devices="--verbose" in args)
    try:
        line = parse(args)
    except SystemExit as stop:  # tyro has printed help or what is wrong
        sys.stdout.flush()
        return stop.code if isinstance(stop.code, int) else USAGE_ERROR
    _leave_absent_tpus_alone()
    if line.everywhere.offline:
        os.environ["JAXDECODE_OFFLINE"] = "1"
    return _run(line)


def parse(args: Sequence[str]) -> CommandLine:
    """Reads a command line without running it.

    Raises:
        SystemExit: help was asked for, or something is wrong; either has been printed.
    """
    if list(args[:2]) == ["bench", "compare"]:
        # A command of its own, since bench itself takes no names.
        args = ["bench-compare", *args[2:]]
    with _plain_help():
        return tyro.cli(
            CommandLine,
            prog="jaxdecode",
            description=_DESCRIPTION,
            args=args or ["--help"],
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )


@contextlib.contextmanager
def _plain_help() -> Iterator[None]:
    """Tyro knows no NO_COLOR, but leaves colours out for dumb terminals."""
    kept = os.environ.get("TERM")
    if not colours(sys.stdout):
        os.environ["TERM"] = "dumb"
    try:
        yield
    finally:
        os.environ.pop("TERM", None)
        if kept is not None:
            os.environ["TERM"] = kept


def _print_versions(*, devices: bool) -> int:
    for name, version in packages.versions().items():
        print(f"{name} {version}")
    if not devices:
        return 0
    _leave_absent_tpus_alone()
    found, finding = machine.devices()
    print(f"devices {machine.describe(found) or finding.text}")
    return 0 if found else OTHER_ERROR


def _leave_absent_tpus_alone() -> None:
    """Without a TPU, JAX would wait for libtpu to look for one, which is here to compile only."""
    other = any(find_spec(name) for name in ("jax_cuda12_plugin", "jax_cuda13_plugin"))
    if find_spec("libtpu") and not machine.tpus() and not other:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _run(line: CommandLine) -> int:
    command, begin = line.command, time.perf_counter()
    try:
        speak_as(line.everywhere)
        code = command.run()
        sys.stdout.flush()
        say_what_it_took(time.perf_counter() - begin)
        return code
    except BrokenPipeError:  # no error to report; `main` ends quietly
        raise
    except KeyboardInterrupt:
        note("interrupted")
        return INTERRUPTED
    except JaxdecodeError as error:
        return _report(str(error), command, USAGE_ERROR if isinstance(error, InputError) else 1)
    except Exception as error:
        # Anything else is a bug or a full machine; users still get one line.
        kind = type(error).__name__
        hint = "" if command.debug else " (--debug shows where)"
        return _report(f"{kind}: {error}{hint}", command, OTHER_ERROR)


def _report(message: str, command: Command, code: int) -> int:
    if command.debug:
        traceback.print_exc()
    complain(f"error: {' '.join(message.split())}")
    return code
