"""A checkout with the scripts, and a cloud that is made of fakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tpu_scripts import cli

ROOT = Path(__file__).parents[2]
# Of the same environment, which need not be on the path.
SHELLCHECK = str(Path(sys.executable).with_name("shellcheck"))
TOOLS = ("gcloud", "xpk", "sky", "sbatch", "srun", "jaxdecode")
# Stands for Python 3.12 on a host: makes a venv whose Python installs nothing.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    "-c import sys; print"*) echo py312 ;;
    "-m pip install"*) echo "$@" >>.venv/pip ;;
    "-m pip show"*) printf 'Name: jaxdecode\\nVersion: 1\\n' ;;
esac
"""
SPOT = {
    "name": "my-job",
    "project": "my-project",
    "zone": "us-west4-a",
    "accelerator": "v5litepod-8",
    "mode": "spot",
    "command": "echo hello",
}
POD = SPOT | {"accelerator": "v5e:8x8", "mode": "on_demand", "devices": "host", "outputs": ["out"]}
INSIDE = POD | {"create_flags": ["--internal-ips"], "ssh_flags": ["--internal-ip"]}
QUEUED = SPOT | {
    "mode": "queued",
    "accelerator": "v4-8",
    "zone": "us-central2-b",
    "queued": {"spot": True, "valid_until": "6h"},
    "bucket": "gs://bucket/folder",
    "outputs": ["out/"],
}


class Cloud:
    """The checkout, the fakes on PATH, and what they were asked."""

    def __init__(self, folder: Path, fake: Path, capture: pytest.CaptureFixture):
        self.folder, self.fake, self._capture = folder, fake, capture
        self.plan()

    def plan(self, **answers: list) -> None:
        """What the cloud answers from now on."""
        (self.fake / "plan.json").write_text(json.dumps(answers))

    def tpu(self, verb: str, job: dict, *options: str) -> subprocess.CompletedProcess:
        """`tpu VERB JOB`, in this process: it is faster."""
        path = self.fake / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        self._capture.readouterr()
        code = cli.main([verb, str(path), "--poll", "0", *options])
        return subprocess.CompletedProcess([], code, *self._capture.readouterr())

    def run(self, argv: list[str], **options) -> subprocess.CompletedProcess:
        return subprocess.run(argv, capture_output=True, text=True, **options)

    def calls(self) -> list[list[str]]:
        """What was called since the last time."""
        path = self.fake / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def verbs(self) -> list[str]:
        """What was called since the last time, in short."""
        return [short(call) for call in self.calls()]


def short(call: list[str]) -> str:
    if call[:2] == ["gcloud", "storage"]:
        return call[2]
    words = [word for word in call if "on_host.sh" in word]
    if words:
        return words[0].split("on_host.sh ")[1].split()[0]
    return " ".join(call[3:5]).replace("queued-resources", "queue").replace("tpu-vm", "vm")


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A repository with what goes to the hosts."""
    folder = tmp_path_factory.mktemp("checkout")
    for source in ("tpu_scripts", "constraints"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / source, folder / source, ignore=ignore)
    commit = ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "--quiet", "-m", "all"]
    for words in (["init", "--quiet"], ["add", "."], commit):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


@pytest.fixture
def cloud(tmp_path, checkout, monkeypatch, capfd):
    tools = tmp_path / "bin"
    tools.mkdir()
    fake = Path(__file__).parent / "fake.py"
    call = f'#!/bin/sh\nexec {sys.executable} -I -S {fake} "${{0##*/}}" "$@"\n'
    for name, text in {**dict.fromkeys(TOOLS, call), "python3.12": PYTHON}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    # Whatever happens, no real account is asked.
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "no-account"))
    monkeypatch.setattr(cli, "ROOT", checkout)
    monkeypatch.chdir(checkout)
    shutil.rmtree(checkout / "runs", ignore_errors=True)
    return Cloud(checkout, tmp_path, capfd)
