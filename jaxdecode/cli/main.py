"""The entry point: reads the command line, runs one command, turns errors into one line."""

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import subcommand

import jaxdecode
from jaxdecode.cli.bench import Bench
from jaxdecode.cli.bench_compare import BenchCompare
from jaxdecode.cli.common import note
from jaxdecode.cli.convert import Convert
from jaxdecode.cli.distill import Distill
from jaxdecode.cli.exactness import Exactness
from jaxdecode.cli.generate import Generate
from jaxdecode.cli.inspect import Inspect
from jaxdecode.cli.merge import Merge
from jaxdecode.cli.methods import Methods
from jaxdecode.cli.models import Models
from jaxdecode.cli.plan import Plan
from jaxdecode.cli.train import Train
from jaxdecode.cli.tree import Tree
from jaxdecode.cli.verify import Verify
from jaxdecode.errors import InputError, JaxdecodeError

_DESCRIPTION = (
    "Decoding for language models in JAX. "
    "`jaxdecode COMMAND --help` explains a command; `jaxdecode --version` prints the version."
)

Command = (
    Annotated[Generate, subcommand("generate")]
    | Annotated[Merge, subcommand("merge")]
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
)

USAGE_ERROR = 2
OTHER_ERROR = 1
# As the shell counts commands that a signal ended: 128 + SIGINT, 128 + SIGPIPE.
INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    0 is success, 2 input that cannot be used, 1 any other error, 130 Ctrl-C.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if args == ["--version"]:
        print(f"jaxdecode {jaxdecode.__version__}")
        return 0
    if args[:2] == ["bench", "compare"]:  # a command of its own that reads like one of bench's
        args[:2] = ["bench-compare"]
    try:
        command = tyro.cli(
            Command,
            prog="jaxdecode",
            description=_DESCRIPTION,
            args=args or ["--help"],
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit as stop:  # tyro has printed help or what is wrong
        return stop.code if isinstance(stop.code, int) else USAGE_ERROR
    _leave_absent_tpus_alone()
    return _run(command)


def _leave_absent_tpus_alone() -> None:
    """Without a TPU, JAX would wait for libtpu to look for one, which is here to compile only."""
    other = any(find_spec(name) for name in ("jax_cuda12_plugin", "jax_cuda13_plugin"))
    found = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    if find_spec("libtpu") and not found and not other:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _run(command: Command) -> int:
    try:
        code = command.run()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read us has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
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
    note(f"error: {' '.join(message.split())}")
    return code
