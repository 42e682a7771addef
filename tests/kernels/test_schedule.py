"""The inner loops of the verify step stay as short as they were."""

import json
import subprocess
import sys

import pytest

from tests.kernels import schedule
from tests.kernels.topology import needs_libtpu

# Bundles for 256 rows and 512 slots of one KV head: what the design promises on v5e.
LIMIT = 620
TEXT = """
  0x1 LB: > {{ %s1 = smov 0 }}
  0x2 LB: >> {{ %v1 = vld [vmem:[%s1]] }}
  0x3   : >> {{ %2 = vst [vmem:[#allocation7_spill] sm:$0xff] %v1 ;; %3 = vst [vmem:[%s2]] %v1 }}
  0x4   : > {{ %s2 = smov 1 }}
{rest}"""


def test_bundles_and_spills_are_counted_in_inner_loops_only():
    rest = "".join(f"  0x{n:x} LB: >> {{ %v = vld }}\n" for n in range(5, 9))
    loops = schedule.read(TEXT.format(rest=rest))
    assert loops["new_words"] == {"bundles": 2, "spills": 1}
    assert loops["finish"] == {"bundles": 1, "spills": 0}


def test_a_kernel_with_other_loops_is_not_read():
    with pytest.raises(ValueError, match="found 1"):
        schedule.read(TEXT.format(rest=""))


def _measured(generation):
    command = [sys.executable, "-m", "tests.kernels.schedule", generation]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("generation", ["v5e", "v5p", "v6e"])
def test_schedule_is_within_a_tenth_of_the_baseline(generation):
    loops = _measured(generation)
    if generation == "v5e":
        assert loops["cache_full"]["bundles"] <= LIMIT
    stored = json.loads(schedule.BASELINE.read_text(encoding="utf-8"))
    if schedule.version() not in stored:
        pytest.skip(
            f"no baseline for libtpu {schedule.version()}; "
            f"store one with python -m tests.kernels.schedule {generation} --write"
        )
    for name, wanted in stored[schedule.version()][generation].items():
        for unit, count in wanted.items():
            assert loops[name][unit] <= 1.1 * count, (name, unit)
