"""The preflight, here: who is missing, whose clock is wrong, how many devices there are."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest

from jaxdecode.dist.hosts import Process
from jaxdecode.errors import HostsError
from tests.dist.ports import free_address
from tpu_scripts import clocks, preflight

ROOT = Path(__file__).parents[2]
ONE = ("--processes", "1", "--process-id", "0")


def start(*args):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-m", "tpu_scripts.preflight", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, cwd=ROOT, **pipes)


def test_two_processes_agree_and_count_their_devices():
    place = ("--coordinator", free_address(), "--processes", "2", "--devices", "2")
    both = [start(*place, "--process-id", str(i), "--timeout", "60") for i in range(2)]
    for i, process in enumerate(both):
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert f"process {i} of 2: 2 cpu devices, [1, 1] by process" in out


@pytest.fixture
def run(capsys):
    """The preflight of one process, here; returns code and what it said."""

    def run(*, processes=1, **options):
        code = preflight.main(processes=processes, process_id=0, alone=True, **options)
        told = capsys.readouterr()
        return code, told.out + told.err

    return run


def test_one_process(run):
    code, said = run(devices=jax.local_device_count())
    assert code == 0 and said.startswith("process 0 of 1: ")


def test_too_few_devices(run):
    code, said = run(devices=4096)
    assert code == 1 and "but the slice has 4096" in said and "jaxdecode[tpu]" in said


def test_too_little_disk(run):
    code, said = run(min_disk_gb=10**9)
    assert code == 1 and "of 1000000000 GB free: make room" in said


def test_who_is_missing(run):
    code, said = run(processes=2, coordinator=free_address(), timeout=0.5)
    assert code == 1 and said.startswith("error: 1 of 2 processes joined in time (0.5 s)")


def compare(second_clock):
    """Two processes compare their clocks; the first shows 100."""
    address = free_address()
    first, second = (Process(process_id=i, num_processes=2, coordinator=address) for i in range(2))
    options = {"max_skew": 10.0, "timeout": 10.0}
    server = threading.Thread(
        target=clocks.check, args=(first,), kwargs={**options, "now": lambda: 100.0}
    )
    server.start()
    try:
        return clocks.check(second, **options, now=second_clock)
    finally:
        server.join()


def test_clocks_that_agree():
    assert compare(lambda: 97.0) == -3.0


def test_a_clock_that_is_wrong():
    with pytest.raises(HostsError, match=r"the clock of process 1 on .* is \+20.0 s from that"):
        compare(lambda: 120.0)


def test_nobody_to_compare_with():
    alone = Process(process_id=1, num_processes=2, coordinator=free_address())
    with pytest.raises(HostsError, match="start the check on all hosts"):
        clocks.check(alone, max_skew=1.0, timeout=0.3)


def test_devices_that_do_not_answer(monkeypatch, capsys):
    ended = threading.Event()
    monkeypatch.setattr(jax, "local_device_count", lambda: ended.wait(10))
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    preflight.main(processes=1, process_id=0, alone=True, timeout=0.2)
    assert ended.is_set() and "do not answer within 0.2 s" in capsys.readouterr().err
