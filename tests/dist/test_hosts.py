"""The start of several processes: their places, what they compare, and jax.distributed for real."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxdecode.dist import hosts
from jaxdecode.dist.hosts import Process
from jaxdecode.errors import HostsError, InputError
from tests.dist.ports import free_address

ROOT = Path(__file__).parents[2]
# One process of a run: starts, sums over all devices of all processes, and says what it saw.
PROCESS = """
import sys
from jaxdecode.dist import hosts
from jaxdecode.errors import JaxdecodeError
address, num, own, fact, timeout = sys.argv[1:]
here = hosts.Process(coordinator=address, num_processes=int(num), process_id=int(own))
try:
    hosts.start(here, {"--temperature": fact}, timeout=float(timeout))
except JaxdecodeError as error:
    sys.exit(f"error: {error}")
import jax, jax.numpy as jnp
from jax.experimental import multihost_utils
sum = multihost_utils.process_allgather(jnp.int32(jax.process_index() + 1)).sum()
print("saw", jax.process_count(), jax.device_count(), jax.local_device_count(), sum)
"""


def process(*args: object) -> subprocess.Popen:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, "-c", PROCESS, *map(str, args)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ends(started: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    texts = [one.communicate(timeout=100) for one in started]
    return [(one.returncode, *text) for one, text in zip(started, texts, strict=True)]


def test_two_processes_are_one_machine_to_jax():
    address = free_address()
    found = ends([process(address, 2, i, "0", 60) for i in (1, 0)])
    for code, out, err in found:
        # Gloo, under JAX, writes to stdout too, perhaps on the same line.
        assert (code, "saw 2 8 4 3" in out) == (0, True), (out, err)


@pytest.mark.parametrize("alone", [0, 1])
def test_one_of_two_ends_with_an_error_in_time(alone):
    begin = time.monotonic()
    ((code, _, err),) = ends([process(free_address(), 2, alone, "0", 1)])
    assert time.monotonic() - begin < 30  # 1.3 s on a free machine
    assert code == 1 and err.count("\n") == 1
    wanted = (
        "1 of 2 processes joined in time (1 s); missing: process 1"
        if alone == 0
        else ("process 1 on ")
    )
    assert err.startswith(f"error: {wanted}")


def test_differing_options_end_both_before_jax_starts():
    address = free_address()
    found = ends([process(address, 2, i, f"0.{i}", 60) for i in (0, 1)])
    for code, out, err in found:
        assert (code, out) == (1, "")
        assert err.startswith("error: --temperature differs: 0.0 on process 0 on ")
        assert ", 0.1 on process 1 on " in err and err.count("\n") == 1


def test_other_code_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(hosts, "_package_folder", lambda name: tmp_path / name)
    for name in ("jaxdecode", "pallas_kernels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("x = 1\n")
    before = hosts.code_digest()
    assert before == hosts.code_digest()
    (tmp_path / "jaxdecode" / "notes.txt").write_text("no code")
    (tmp_path / "jaxdecode" / "_configs").mkdir()
    (tmp_path / "jaxdecode" / "_configs" / "a.yaml").write_text("x: 1")
    assert before == hosts.code_digest()
    monkeypatch.setattr(hosts, "config_dir", lambda: tmp_path / "jaxdecode" / "_configs")
    installed = hosts.code_digest()
    (tmp_path / "jaxdecode" / "_configs" / "a.yaml").write_text("x: 2")
    assert len({before, installed, hosts.code_digest()}) == 3
    before = hosts.code_digest()
    (tmp_path / "pallas_kernels" / "a.py").write_text("x = 2\n")
    changed = hosts.code_digest()
    (tmp_path / "pallas_kernels" / "a.py").rename(tmp_path / "pallas_kernels" / "b.py")
    assert len({before, changed, hosts.code_digest()}) == 3


def test_facts_have_code_and_versions():
    hosts.code_facts.cache_clear()
    facts = hosts.code_facts()
    assert list(facts) == ["the code of jaxdecode", "the version of jax", "the version of Python"]
    assert hosts.code_digest()[:12] in facts["the code of jaxdecode"]


@pytest.fixture
def no_cluster(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "KUBERNETES_")):
            monkeypatch.delenv(name)


@pytest.fixture
def slurm(no_cluster, monkeypatch):
    names = {
        "JOB_ID": 4096,
        "STEP_NODELIST": "node[007-009]",
        "NTASKS": 3,
        "PROCID": 2,
        "LOCALID": 0,
    }
    for name, value in names.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


def test_a_lone_process_has_nobody_to_meet(no_cluster):
    assert hosts.this_process() == Process()
    hosts.preflight(hosts.this_process(), {}, timeout=0.1)
    hosts.start(hosts.this_process(), {}, timeout=0.1)


def test_the_environment_says_where_a_process_stands(slurm):
    assert hosts.this_process() == Process(
        process_id=2, num_processes=3, coordinator="node007:61440"
    )
    given = hosts.this_process(coordinator="10.0.0.1:99")
    assert given == Process(process_id=2, num_processes=3, coordinator="10.0.0.1:99")


def test_what_is_given_wins_over_the_environment(slurm):
    assert hosts.this_process(num_processes=2, process_id=1) == Process(
        process_id=1, num_processes=2
    )


def test_an_environment_that_does_not_answer_is_an_error(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "many")
    with pytest.raises(HostsError, match="does not tell this process its place"):
        hosts.this_process()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 2, "process_id": 2}, "process id 2 is out of range; with 2 processes"),
        ({"num_processes": 2, "process_id": -1}, "from 0 to 1"),
        ({"num_processes": 0, "process_id": 0}, "0 processes are too few"),
        ({"num_processes": 2}, "got 2 and None"),
        ({"process_id": 1}, "got None and 1"),
        ({"coordinator": "a:1"}, "got None and None"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "'a' is not of the form"),
        ({"coordinator": "a:0", "num_processes": 2, "process_id": 0}, "'a:0' is not of the form"),
    ],
)
def test_places_that_cannot_be(no_cluster, given, message):
    with pytest.raises(InputError) as caught:
        hosts.this_process(**given)
    assert message in str(caught.value)


def test_several_processes_need_a_coordinator_to_start():
    with pytest.raises(InputError, match="2 processes need a coordinator"):
        hosts.start(Process(num_processes=2), {})
