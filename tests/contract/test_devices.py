"""The same tokens on eight devices: rows split over `data`, parameters over `model`."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import toys

MESHES = ("data=4,model=2", "data=8", "data=2,model=4")


def different(names, meshes, processes=1):
    """Methods whose tokens differ from those of one device, by mesh, as every process sees it."""
    devices = f"--xla_force_host_platform_device_count={8 // processes}"
    env = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.contract.devices", ",".join(names), address]
    running = [
        subprocess.Popen(
            [*command, str(processes), str(process), *meshes],
            env=env | {"JAX_PLATFORMS": "cpu"},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    outputs = [process.communicate() for process in running]
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def test_a_few_methods_on_eight_devices():
    names, meshes = ["ar", "prompt_lookup", "token_recycling", "freedave"], MESHES[:1]
    assert different(names, meshes) == [{mesh: [] for mesh in meshes}]


def test_two_processes_decode_together():
    meshes = ("data=2,model=4", "data=4,model=2")
    assert different(["ar"], meshes, processes=2) == [{mesh: [] for mesh in meshes}] * 2


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_every_method_on_eight_devices(mesh):
    assert different([*toys.LOOP, *toys.FILL], [mesh]) == [{mesh: []}]


@pytest.mark.slow
def test_every_method_by_two_processes():
    mesh = "data=2,model=4"
    assert different([*toys.LOOP, *toys.FILL], [mesh], processes=2) == [{mesh: []}] * 2
