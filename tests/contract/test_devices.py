"""The same tokens on eight devices: rows split over `data`, parameters over `model`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import toys

MESHES = ("data=4,model=2", "data=8", "data=2,model=4")


def different(names, meshes):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract.devices", ",".join(names), *meshes],
        env=env,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_few_methods_on_eight_devices():
    names, meshes = ["ar", "prompt_lookup", "token_recycling"], MESHES[:1]
    assert different(names, meshes) == {mesh: [] for mesh in meshes}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_every_method_on_eight_devices(mesh):
    assert different(toys.LOOP, [mesh]) == {mesh: []}
