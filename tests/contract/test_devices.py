"""The same tokens on eight devices: rows split over `data`, parameters over `model`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import toys


def different(names):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract.devices", ",".join(names)],
        env=env,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_few_methods_on_eight_devices():
    assert different(["ar", "prompt_lookup", "token_recycling"]) == []


@pytest.mark.slow
def test_every_method_on_eight_devices():
    assert different(toys.LOOP) == []
