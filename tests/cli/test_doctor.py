"""`jaxdecode doctor`: what it says of packages and machines that are broken in known ways."""

import fcntl
import json
import os
import sys

import pytest
from packaging.requirements import Requirement

from jaxdecode.cli import doctor, machine, packages
from jaxdecode.cli.findings import Finding

GOOD = {"jax": "0.10.2", "jaxlib": "0.10.2", "numpy": "2.4.6"}


def broken(findings):
    return [finding for finding in findings if finding.status == "broken"]


@pytest.fixture
def seen(monkeypatch):
    """The devices are known without a process that looks for them."""
    found = [{"platform": "cpu", "kind": "cpu", "bytes": None}]
    answer = found, Finding("devices", "ok", "1 x cpu")
    monkeypatch.setattr(machine, "devices", lambda: answer)


def test_report_and_json(cli, seen, tmp_path):
    (tmp_path / "cache" / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "cache" / "models" / "tiny" / "weights").write_bytes(b"x" * 3_000_000)
    done = cli("doctor")
    assert done.code == 0 and done.err == "" and "\x1b" not in done.out
    assert "3.0 MB  model tiny" in done.out
    found = json.loads(cli("doctor", "--json").out)
    assert found["ok"] and found["devices"][0]["platform"] == "cpu"
    assert {"packages", "devices", "memory", "disk"} <= {one["name"] for one in found["findings"]}
    assert [one["num_bytes"] for one in found["caches"] if one["name"] == "model tiny"] == [
        3_000_000
    ]
    assert found["versions"].keys() >= {"jaxdecode", "python", "jax", "jaxlib", "flax"}


def test_what_is_broken_sets_the_exit_code(cli, monkeypatch):
    wrong = Finding("devices", "broken", "JAX does not start: no", "repair it")
    monkeypatch.setattr(machine, "devices", lambda: ([], wrong))
    done = cli("doctor")
    assert done.code == 1 and "JAX does not start: no" in done.out and "-> repair it" in done.out
    assert json.loads(cli("doctor", "--json").out)["ok"] is False


def test_the_probe_finds_devices_and_reports_a_jax_that_does_not_start(monkeypatch):
    found, finding = machine.devices()
    assert found[0]["platform"] == "cpu" and finding.status == "ok"
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    found, finding = machine.devices()
    assert found == [] and finding.status == "broken" and "nonsense" in finding.text
    assert finding.fix == "unset JAX_PLATFORMS (nonsense)"
    assert "within 0 s" in machine.devices(timeout=0.01)[1].text


@pytest.mark.parametrize(
    ("have", "text"),
    [
        ({}, "numpy>=2.0 (not installed)"),
        ({"numpy": "1.26.4"}, "numpy>=2.0 (installed: 1.26.4)"),
    ],
)
def test_missing_and_old_packages(have, text):
    (finding,) = packages.required([Requirement("numpy>=2.0")], have)
    assert finding.status == "broken" and text in finding.text
    assert finding.fix == "pip install --upgrade 'numpy>=2.0'"


def test_requirements_that_fit_pass():
    asked = [Requirement("numpy>=2.0"), Requirement("wandb>=1; extra == 'wandb'")]
    (finding,) = packages.required(asked, GOOD)
    assert finding.status == "ok"


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"jaxlib": "0.11.0"}, "broken", "refuses to start"),
        ({"jaxlib": "0.10.1"}, "warning", "older"),
        ({"jax-cuda13-plugin": "0.10.1"}, "warning", "will not use it"),
    ],
)
def test_pairs_that_do_not_match(change, status, text):
    (finding,) = packages.pairs(GOOD | change)
    assert finding.status == status and text in finding.text


def test_pairs_that_match():
    assert list(packages.pairs(GOOD | {"jax-cuda13-plugin": "0.10.2"})) == []
    assert list(packages.pairs({"jax": "0.12.0.1", "jaxlib": "0.12.0"})) == []
    both = {"jax-cuda12-plugin": "0.10.2", "jax-cuda13-plugin": "0.10.2"}
    (finding,) = packages.pairs(GOOD | both)
    assert "cuda12 and cuda13" in finding.text


def test_versions_other_than_the_tested_ones(tmp_path):
    file = tmp_path / "py311.txt"
    file.write_text("# made\nnumpy==2.4.6\njaxlib==0.10.2\nother==1\n")
    assert next(packages.pinned(file, GOOD, ["numpy"])).status == "ok"
    (finding,) = packages.pinned(file, GOOD | {"numpy": "2.3.0"}, ["numpy"])
    assert finding.status == "note" and "numpy 2.3.0 (tested: 2.4.6)" in finding.text
    assert next(packages.pinned(None, GOOD, [])).status == "note"


def test_hardware_and_plugins_that_miss_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    dev = tmp_path / "dev"
    (dev / "vfio").mkdir(parents=True)
    assert list(machine.accelerators({"libtpu": "1"}, dev)) == []
    (noted,) = machine.accelerators({"jax-cuda13-plugin": "0.10.2"}, dev)
    assert noted.status == "note" and "no NVIDIA GPU is here" in noted.text
    (dev / "nvidia0").touch()
    (dev / "vfio" / "0").touch()
    gpu, tpu = machine.accelerators({}, dev)
    assert "cuda13" in gpu.fix and "tpu" in tpu.fix


def test_a_tpu_that_another_process_holds(tmp_path):
    chip, proc, lock = tmp_path / "accel0", tmp_path / "proc", tmp_path / "lock"
    (proc / "712" / "fd").mkdir(parents=True)
    chip.touch()
    assert machine.held([chip], proc=proc, lock=lock) is None
    (proc / "712" / "fd" / "3").symlink_to(chip)
    (proc / "712" / "cmdline").write_bytes(b"python\0train.py\0")
    finding = machine.held([chip], proc=proc, lock=lock)
    assert (
        finding and finding.status == "broken" and "process 712 (python train.py)" in finding.text
    )
    assert machine.held([], proc=proc, lock=lock) is None


def test_a_lock_that_is_taken_or_left_behind(tmp_path):
    chip, proc, lock = tmp_path / "accel0", tmp_path / "proc", tmp_path / "lock"
    proc.mkdir()
    lock.touch()
    assert machine.held([chip], proc=proc, lock=lock) is None
    with lock.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        finding = machine.held([chip], proc=proc, lock=lock)
    assert finding and "locked by a process" in finding.text
    lock.unlink()
    lock.mkdir()  # cannot be opened, as another user's
    finding = machine.held([chip], proc=proc, lock=lock)
    assert finding and f"sudo rm {lock}" in finding.fix


def test_the_holder_of_a_tpu_is_reported_and_jax_is_not_asked(monkeypatch):
    taken = Finding("TPU", "broken", "held by process 7 (x)")
    monkeypatch.setattr(machine, "held", lambda files: taken)
    monkeypatch.setattr(machine, "devices", lambda: pytest.fail("would hang"))
    devices, found = doctor.examine()
    assert devices == [] and broken(found) == [taken]


def test_memory_of_a_machine_and_of_a_container(tmp_path):
    assert machine.memory(tmp_path).status == "note"
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n")
    assert machine.memory(tmp_path).text == "4.1 of 8.2 GB available"
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("2000000000")
    (group / "memory.current").write_text("1500000000")
    assert machine.memory(tmp_path) == Finding(
        "memory",
        "warning",
        "0.5 of 2.0 GB available",
        "end other processes, or take a smaller model",
    )


def test_small_pages_are_noted_where_large_ones_come_on_request(tmp_path, monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert not list(machine.large_pages(tmp_path)), "no such file: another system"
    file = tmp_path / "sys/kernel/mm/transparent_hugepage/enabled"
    file.parent.mkdir(parents=True)
    file.write_text("[always] madvise never\n")
    assert not list(machine.large_pages(tmp_path))
    file.write_text("always [madvise] never\n")
    (found,) = machine.large_pages(tmp_path)
    assert found.status == "note" and "GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in found.fix
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1:glibc.malloc.hugetlb=1")
    assert not list(machine.large_pages(tmp_path))


def test_a_cache_folder_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXDECODE_CACHE", str(tmp_path / "cache"))
    assert broken(machine.places()) == []
    monkeypatch.setattr(os, "access", lambda *_: False)
    (finding,) = broken(machine.places())
    assert "JAXDECODE_CACHE" in finding.fix


def test_compiled_programs_can_be_turned_off(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXDECODE_CACHE", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled" / "one").write_bytes(b"x" * 2_000_000)
    texts = {finding.name: finding.text for finding in machine.places()}
    assert f"{tmp_path / 'compiled'}: 2.0 MB" in texts["compiled programs"]
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    texts = {finding.name: finding.text for finding in machine.places()}
    assert "not kept" in texts["compiled programs"]


def test_colours_only_on_terminals_and_never_with_no_color(monkeypatch):
    assert doctor._status("broken") == "broken "
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert doctor._status("broken") == "\x1b[31mbroken \x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert doctor._status("broken") == "broken "
