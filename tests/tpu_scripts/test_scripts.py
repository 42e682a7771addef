"""The scripts for slices: what they ask of gcloud, and the preflight on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dist.ports import free_address

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tpu_scripts"
# Runs what a host would run, in a folder that stands for its home.
GCLOUD = """#!/usr/bin/env bash
set -e
echo "$@" >> "$CALLS"
while (($#)); do
    if [[ $1 == --command ]]; then cd "$HOST" && bash -c "$2"; fi
    shift
done
"""


@pytest.fixture
def launch(tmp_path):
    """Calls launch.sh with a gcloud that has one host, here; returns output and gcloud's calls."""
    tools, host, calls = tmp_path / "tools", tmp_path / "host", tmp_path / "calls"
    tools.mkdir()
    (host / "jaxdecode").mkdir(parents=True)
    for name, text in (("gcloud", GCLOUD), ("jaxdecode", '#!/bin/sh\necho "merged: $*"\n')):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(calls), "HOST": str(host)
    }  # fmt: skip

    def run(*args):
        done = subprocess.run(
            [SCRIPTS / "launch.sh", *args],
            env=environment, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


def test_words_arrive_as_typed(launch):
    words = ["two words", "$HOME", "a;b", "'", '"']
    done, calls = launch("slice", "zone", "run", "printf", "%s\\n", *words)
    assert done.returncode == 0 and done.stdout.splitlines() == words
    assert calls[0].startswith(
        "compute tpus tpu-vm ssh slice --zone zone --worker=all --command cd jaxdecode && PATH="
    )


def test_a_failing_host_fails_the_launch(launch):
    assert launch("slice", "zone", "run", "false")[0].returncode == 1


def test_collect_asks_every_host_and_merges(launch, tmp_path):
    done, calls = launch("slice", "zone", "collect", "2", "out")
    assert calls == [
        f"compute tpus tpu-vm scp slice:jaxdecode/out/* out --zone zone --worker={i}"
        for i in (0, 1)
    ]
    assert done.stdout == "merged: merge out\n" and (tmp_path / "out").is_dir()


@pytest.mark.parametrize(
    "args", [(), ("slice", "zone"), ("slice", "zone", "fly"), ("s", "z", "run")]
)
def test_usage(launch, args):
    done, calls = launch(*args)
    assert done.returncode == 2 and "launch.sh SLICE ZONE" in done.stderr and calls == []


def preflight(*args):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, SCRIPTS / "preflight.py", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_preflight_of_one_process():
    done = preflight("--processes", "1", "--process-id", "0")
    assert done.returncode == 0 and "process 0 of 1: 1 cpu devices, [1] by process" in done.stdout


def test_preflight_names_who_is_missing():
    place = ("--processes", "2", "--process-id", "0", "--coordinator", free_address())
    done = preflight(*place, "--timeout", "0.5")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: 1 of 2 processes joined in time (0.5 s)")


def test_scripts_are_short():
    for path in Path(SCRIPTS).iterdir():
        if path.is_file():
            assert len(path.read_text().splitlines()) <= 80, path
