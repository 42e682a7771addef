"""Runs killed at random, by SIGTERM and kill -9, alone and as two processes: nothing is lost.

`KILLS=20 pytest -m slow tests/training/test_kills.py` kills more often.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml

from jaxdecode.training import metrics
from tests.dist.ports import free_address
from tests.training import runs

KILLS = int(os.environ.get("KILLS", "4"))


class Driver:
    """Starts the command on one or two processes, and kills it."""

    def __init__(self, folder, processes, devices, **changes):
        content = runs.config(folder, log={"every": 1}, checkpoint={"every": 20}, **changes)
        self.config = folder / "run.yaml"
        self.config.write_text(yaml.safe_dump(content))
        self.processes = processes
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        self.environment = {
            **os.environ,
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "JAXDECODE_CACHE": str(folder / "cache"),
        }

    def start(self, out):
        command = [sys.executable, "-m", "jaxdecode", "train", str(self.config)]
        command += ["--out", str(out), "--resume"]
        shared = []
        if self.processes > 1:
            shared = ["--processes", str(self.processes), "--coordinator", free_address()]
        return [
            subprocess.Popen(
                [*command, *shared, *(["--process-id", str(i)] if shared else [])],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(self.processes)
        ]

    def finish(self, out):
        started = self.start(out)
        for process in started:
            _, err = process.communicate(timeout=500)
            assert process.returncode == 0, err

    def kill(self, out, rng):
        """Starts, waits for steps, and kills; the signal, the step it came to, how it ended."""
        file, started = out / "metrics.jsonl", self.start(out)
        size = file.stat().st_size if file.exists() else 0
        deadline = time.monotonic() + 300
        while not file.exists() or file.stat().st_size <= size:
            ended = [p for p in started if p.poll() is not None]
            assert not ended and time.monotonic() < deadline, [p.communicate() for p in ended]
            size = min(size, file.stat().st_size) if file.exists() else 0
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.0))
        victim, number = rng.choice(started), rng.choice([signal.SIGTERM, signal.SIGKILL])
        victim.send_signal(number)
        for process in started:
            try:
                process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        return number.name, metrics.read(out)[-1]["step"], {p.returncode for p in started}


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices", "mesh"), [(1, 1, None), (2, 4, "data=4,model=2")])
def test_killed_runs_end_as_uninterrupted_ones(processes, devices, mesh, tmp_path):
    rng = random.Random(processes)
    steps = 60 * KILLS + 200
    driver = Driver(tmp_path, processes, devices, mesh=mesh, batch_size=8, steps=steps)
    driver.finish(tmp_path / "whole")
    seen = []
    for _ in range(KILLS):
        seen.append(driver.kill(tmp_path / "killed", rng))
        if seen[-1][1] == steps:
            break
    print(seen)
    driver.finish(tmp_path / "killed")
    runs.assert_same(tmp_path / "whole", tmp_path / "killed")
    whole, killed = (
        (tmp_path / name / "heads" / "heads.safetensors").read_bytes()
        for name in ("whole", "killed")
    )
    assert whole == killed
