"""Other libraries as lines of `bench`: the same weights and prompts, in turn with our methods.

Each peer is a process of its own, which waits while others run. It may use another Python, so that
no peer has to be installed beside us.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxdecode.convert import pipeline
from jaxdecode.errors import InputError, JaxdecodeError, UnsupportedError
from jaxdecode.evals import gguf_copy, machine
from jaxdecode.evals.bench_lines import Line, parse_options
from jaxdecode.language_model import LanguageModel

ENGINES = ("transformers", "llama-cpp")
_WORKER = Path(__file__).with_name("peer_worker.py")


class PeerError(JaxdecodeError):
    """A peer could not be started, or failed; the message says what it said."""


def parse(text: str) -> tuple[Line, ...]:
    """Lines from `transformers,transformers:prompt_lookup_num_tokens=10,llama-cpp`.

    Options are those of the peer's own `generate` (transformers) or model (llama-cpp).

    Raises:
        InputError: another name, or an option that is not NAME=VALUE.
    """
    found = []
    for label in filter(None, (part.strip() for part in text.split(","))):
        name, *pairs = label.split(":")
        if name not in ENGINES:
            raise InputError(f"--engine {name!r} is not known; use one of {', '.join(ENGINES)}.")
        found.append(Line(label, name, parse_options(label, pairs)))
    return tuple(found)


def check(lines: Sequence[Line], batch_sizes: Sequence[int], temperatures: Sequence[float]) -> None:
    """Refuses what peers cannot be compared at.

    Raises:
        InputError: a temperature other than 0, or several rows for one that takes one.
    """
    if lines and any(temperatures):
        raise InputError("--engine: peers draw other random numbers; use --temperature 0.")
    for line in lines:
        alone = line.method == "llama-cpp" or "prompt_lookup_num_tokens" in line.options
        if alone and set(batch_sizes) != {1}:
            raise InputError(f"--engine {line.label} decodes one row; use --batch-size 1.")


class Peer:
    """A peer that has loaded its model.

    Attributes:
        version: of the library.
    """

    def __init__(self, python: str, setup: dict[str, Any]) -> None:
        """Starts the process and waits until the model is loaded."""
        self._name = setup["engine"]
        pipe = subprocess.PIPE
        try:
            # -P: the folder of the script holds modules that are not for it.
            self._process = subprocess.Popen(
                [python, "-P", str(_WORKER)], stdin=pipe, stdout=pipe, text=True
            )
        except OSError as error:
            raise PeerError(f"--peer-python {python}: cannot be started ({error}).") from error
        self.version: str = self._ask(setup)["version"]

    def generate(
        self, prompts: Sequence[list[int]], max_new_tokens: int, end_tokens: Sequence[int]
    ) -> tuple[list[list[int]], float]:
        """Greedy tokens of every row, and the seconds that the call took."""
        job = dict(prompts=prompts, max_new_tokens=max_new_tokens, end_tokens=list(end_tokens))
        found = self._ask(job)
        return found["tokens"], found["seconds"]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, content: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        found = json.loads(line) if line else {"error": f"exit code {self._process.wait()}"}
        if "error" in found:
            raise PeerError(
                f"--engine {self._name}: {found['error']} (install it, or name a Python that has "
                "it: --peer-python)"
            )
        return found


@contextlib.contextmanager
def started(
    lines: Sequence[Line], lm: LanguageModel, source: Path, python: str | None
) -> Iterator[dict[str, Peer]]:
    """The peers of these lines by label, with the weights of `lm` in its number format.

    Raises:
        PeerError: a library is missing or cannot load the model.
        UnsupportedError: llama-cpp is asked for and the model is no GGUF file.
    """
    found: dict[str, Peer] = {}
    with (
        tempfile.TemporaryDirectory(prefix="jaxdecode-peers-") as folder,
        contextlib.ExitStack() as stack,
    ):
        models = {
            engine: _model(engine, lm, source, Path(folder))
            for engine in dict.fromkeys(line.method for line in lines)
        }
        for line in lines:
            setup = {
                "engine": line.method,
                "model": str(models[line.method]),
                "dtype": lm.dtype.name,
                "threads": machine.num_cores(),
                "max_length": lm.config.max_length,
                "options": line.options,
            }
            found[line.label] = Peer(python or sys.executable, setup)
            stack.callback(found[line.label].close)
        yield found


def _model(engine: str, lm: LanguageModel, source: Path, folder: Path) -> Path:
    """The model in a form that the peer reads."""
    if engine == "transformers":
        return pipeline.convert(
            source, folder / "hf", to="safetensors", dtype=lm.dtype.name, progress=False
        )
    if source.suffix != ".gguf":
        raise UnsupportedError("--engine llama-cpp needs a model that is a .gguf file.")
    kind = "F32" if lm.dtype.name == "float32" else "F16"
    return gguf_copy.write(source, folder / "model.gguf", kind=kind)
