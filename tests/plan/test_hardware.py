"""Topologies by name, and what is wrong with others."""

import importlib.util

import pytest

from jaxdecode.dist import gpu_topology
from jaxdecode.errors import InputError, UnknownNameError, UnsupportedError
from jaxdecode.plan import hardware


@pytest.mark.parametrize(
    ("text", "chip", "num_devices", "num_hosts"),
    [
        ("v5e:4x4", "v5e", 16, 4),
        ("V5P:8x8x8", "v5p", 512, 128),
        ("tpu7x:2x2x1", "tpu7x", 8, 1),
        ("v4:2x2x1", "v4", 4, 1),
        ("v5e:1x1", "v5e", 1, 1),
        ("h100:8", "h100", 8, 1),
        ("b200:16", "b200", 16, 2),
        ("a100:1", "a100", 1, 1),
    ],
)
def test_topologies(text, chip, num_devices, num_hosts):
    found = hardware.parse(text)
    assert (found.chip.name, found.num_devices, found.num_hosts) == (chip, num_devices, num_hosts)
    assert found.name == text.lower()


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("v5x:4x4", UnknownNameError, "'v5x'.*Did you mean.*v5e"),
        ("v7x:2x2x1", UnknownNameError, "Did you mean 'tpu7x'"),
        ("", UnknownNameError, "Known: v4, v5e"),
        ("v5e", InputError, "no shape; write it like v5e:2x2"),
        ("v5e:4x", InputError, "'4x' is no shape"),
        ("v5e:0x4", InputError, "no shape"),
        ("v5e:4x4x4", InputError, "comes in 2 dimensions, got 3"),
        ("v5p:4x4", InputError, "comes in 3 dimensions, got 2; for example v5p:2x2x1"),
        ("h100:2x4", InputError, "comes in 1 dimension, got 2; for example h100:8"),
        ("h100:12", InputError, "use h100:8 or h100:16"),
    ],
)
def test_bad_topologies(text, kind, words):
    with pytest.raises(kind, match=words):
        hardware.parse(text)


@pytest.mark.parametrize(
    ("text", "extra"), [("v5e:2x2", "jaxdecode.tpu."), ("h100:8", "jaxdecode.gpu-aot.")]
)
def test_a_missing_compiler_says_which_extra_to_install(monkeypatch, text, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=extra):
        hardware.devices(hardware.parse(text))


def test_the_ridge_of_every_chip_is_plausible():
    assert set(hardware.CHIPS) == {
        "v4",
        "v5e",
        "v5p",
        "v6e",
        "tpu7x",
        "a100",
        "h100",
        "h200",
        "b200",
    }
    for chip in hardware.CHIPS.values():
        assert 100 < chip.ridge < 700, chip
        assert (chip.vmem_bytes > 0) == (chip.platform == "tpu")


def test_gpus_are_those_that_can_be_compiled_for():
    gpus = {name: chip for name, chip in hardware.CHIPS.items() if chip.platform == "cuda"}
    assert set(gpus) == set(gpu_topology.KINDS)
    for name, chip in gpus.items():
        assert chip.hbm_bytes == gpu_topology.figure(name, "device_memory_size")
        bandwidth = gpu_topology.figure(name, "memory_bandwidth")
        assert abs(chip.hbm_gbps * 1e9 / bandwidth - 1) < 1e-3
