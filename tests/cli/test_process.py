"""What only a process of its own can show: start-up, signals, pipes, caches."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import TINY

ROOT = Path(__file__).parents[2]
SCRIPT = "import sys; from jaxdecode.cli.main import main; sys.exit(main())"


def _command(*args: object) -> list[str]:
    return [sys.executable, "-c", SCRIPT, *map(str, args)]


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    names = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return kept | {"JAXDECODE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}


@pytest.fixture
def many_prompts(tmp_path) -> Path:
    path = tmp_path / "many.jsonl"
    path.write_text('{"tokens": [1, 2]}\n' * 2000)
    return path


def _start(environment, prompts, *args: str) -> subprocess.Popen:
    """Starts work for minutes, and returns after the first result."""
    run = ("generate", "--model", TINY, "--prompts", prompts, "--json", "--batch-size", 1)
    process = subprocess.Popen(
        _command(*run, *args),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background makes them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["finish_reason"] == "length"
    return process


def test_ctrl_c_ends_with_one_line(environment, many_prompts):
    process = _start(environment, many_prompts)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")


def test_broken_pipe_is_quiet(environment, many_prompts):
    process = _start(environment, many_prompts)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=60), err) == (141, "")
    process.stderr.close()


def test_help_into_a_broken_pipe_is_quiet(environment):
    """As of `jaxdecode train --help | head -1`."""
    process = subprocess.Popen(
        _command("train", "--help"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=60), err) == (141, "")
    process.stderr.close()


def test_compiled_programs_are_kept_on_disk(environment, tmp_path):
    prompts = tmp_path / "one.jsonl"
    prompts.write_text('{"tokens": [1]}')
    run = _command("generate", "--model", TINY, "--prompts", prompts, "--max-new-tokens", 2)
    loud, kept = [*run, "--verbose"], tmp_path / "cache" / "compiled"
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    off = environment | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(loud, env=off, check=True, capture_output=True, text=True)
    assert "not kept" in done.stderr and not kept.exists()
    read = []
    for _ in range(2):
        done = subprocess.run(loud, env=environment, check=True, capture_output=True, text=True)
        read.append(int(done.stderr.split(" read back")[0].split()[-1]))
    assert read[0] == 0 < read[1] and list(kept.iterdir())
    own = environment | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}
    subprocess.run(run, env=own, check=True, capture_output=True)
    assert list((tmp_path / "own").iterdir())


def test_importing_the_package_imports_no_jax(environment):
    code = (
        "import sys, time; begin = time.perf_counter(); import jaxdecode; "
        "heavy = {'jax', 'jaxlib', 'flax', 'numpy'} & set(sys.modules); "
        "print(time.perf_counter() - begin, heavy or '')"
    )
    done = _python(environment, code)
    assert float(done.split()[0]) < 1.5 and len(done.split()) == 1


def test_help_is_fast_and_imports_no_jax(environment):
    code = (
        "import sys; from jaxdecode.cli.main import main; main(['generate', '--help']); "
        "print('heavy:', {'jax', 'flax', 'numpy', 'rich.progress'} & set(sys.modules) or 'none')"
    )
    begin = time.perf_counter()
    done = _python(environment, code)
    assert done.endswith("heavy: none\n")
    assert time.perf_counter() - begin < 5  # 0.3 s on a free machine


def _python(environment, code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_console_script(environment):
    script = Path(sys.executable).with_name("jaxdecode")
    if not script.exists():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run(
        [script, "models", "--json"], env=environment, check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout) and done.stderr == ""
