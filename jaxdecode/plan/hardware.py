"""Chips as data, the names of topologies, and devices that exist only for the compiler.

Figures are per JAX device (half a chip on tpu7x) and peak: the makers' data sheets; the HBM of
TPUs is what their compiler lets a program use.
"""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

from jaxdecode.dist import gpu_topology
from jaxdecode.errors import InputError, UnknownNameError, UnsupportedError, near_matches

_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of accelerator, per JAX device.

    Attributes:
        name: as topologies are named.
        platform: what JAX calls its maker's platform.
        hbm_bytes: memory a program can use.
        hbm_gbps: memory bandwidth, GB/s.
        bf16_tflops: dense bfloat16 peak, TFLOP/s; products of float32 weights take several passes.
        link_gbps: GB/s a device can send to the others of its slice over all its links.
        vmem_bytes: on-chip memory that a kernel plans itself; 0 on GPU.
        devices_per_chip: JAX devices of one chip.
        chips_per_host: chips of a full host.
        dimensions: of a slice's shape; 1 on GPU: hosts times GPUs.
    """

    name: str
    platform: Literal["tpu", "cuda"]
    hbm_bytes: int
    hbm_gbps: float
    bf16_tflops: float
    link_gbps: float
    vmem_bytes: int = 0
    devices_per_chip: int = 1
    chips_per_host: int = 4
    dimensions: int = 1

    @property
    def ridge(self) -> float:
        """FLOP per byte at which arithmetic takes as long as reading."""
        return self.bf16_tflops * 1e3 / self.hbm_gbps


def _tpu(name: str, gib: float, gbps: float, tflops: float, link: float, vmem: int, **more) -> Chip:
    return Chip(
        name=name,
        platform="tpu",
        hbm_bytes=int(gib * _GIB),
        hbm_gbps=gbps,
        bf16_tflops=tflops,
        link_gbps=link,
        vmem_bytes=vmem * 2**20,
        **more,
    )


def _gpu(name: str, num_bytes: int, gbps: float, tflops: float, link: float) -> Chip:
    return Chip(
        name=name,
        platform="cuda",
        hbm_bytes=num_bytes,
        hbm_gbps=gbps,
        bf16_tflops=tflops,
        link_gbps=link,
        chips_per_host=8,
    )


CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", 30.75, 1228, 275, 300, 32, dimensions=3),
        _tpu("v5e", 15.75, 819, 197, 200, 128, dimensions=2),
        _tpu("v5p", 95.74, 2765, 459, 600, 128, dimensions=3),
        _tpu("v6e", 31.25, 1640, 918, 400, 128, dimensions=2),
        _tpu("tpu7x", 94.75, 3690, 1154, 600, 64, dimensions=3, devices_per_chip=2),
        _gpu("a100", 85_100_068_864, 2039, 312, 300),
        _gpu("h100", 84_942_979_072, 3352, 989, 450),
        _gpu("h200", 151_397_597_184, 4800, 989, 450),
        _gpu("b200", 191_514_411_008, 7672, 2250, 900),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of one kind of chip.

    Attributes:
        chip: its kind.
        shape: chips along each dimension of a TPU slice; hosts and GPUs per host.
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As the user writes it."""
        if self.chip.platform == "cuda":
            return f"{self.chip.name}:{self.num_devices}"
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_devices(self) -> int:
        """JAX devices of the slice."""
        return math.prod(self.shape) * self.chip.devices_per_chip

    @property
    def num_hosts(self) -> int:
        """Hosts of the slice, all full but the only one."""
        return max(1, math.prod(self.shape) // self.chip.chips_per_host)


def parse(text: str) -> Topology:
    """Reads "v5e:4x4", "v5p:4x4x4" or "h100:8".

    Raises:
        UnknownNameError: no such chip; with near matches.
        InputError: a shape the chip does not come in.
    """
    name, _, shape = text.strip().lower().partition(":")
    if name not in CHIPS:
        raise UnknownNameError(
            f"chip {name!r} of topology {text!r} is not known.{near_matches(name, list(CHIPS))} "
            f"Known: {', '.join(CHIPS)}; for example v5e:4x4, v5p:4x4x4 or h100:8."
        )
    chip = CHIPS[name]
    example = f"{name}:{'x'.join('2' if i < 2 else '1' for i in range(chip.dimensions))}"
    example = f"{name}:8" if chip.platform == "cuda" else example
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", shape):
        raise InputError(f"topology {text!r}: {shape!r} is no shape; write it like {example}.")
    sizes = tuple(int(size) for size in shape.split("x"))
    if len(sizes) != chip.dimensions:
        raise InputError(
            f"topology {text!r}: {name} comes in {chip.dimensions} "
            f"dimension{'s' * (chip.dimensions > 1)}, got {len(sizes)}; for example {example}."
        )
    return Topology(chip, sizes if chip.platform == "tpu" else _hosts(text, sizes[0], chip))


def _hosts(text: str, num_gpus: int, chip: Chip) -> tuple[int, int]:
    full = chip.chips_per_host
    if num_gpus <= full:
        return 1, num_gpus
    if num_gpus % full:
        low = num_gpus // full * full
        raise InputError(
            f"topology {text!r}: more than {full} GPUs come in hosts of {full}; use "
            f"{chip.name}:{low} or {chip.name}:{low + full}."
        )
    return num_gpus // full, full


def devices(topology: Topology) -> Sequence[Any]:
    """Devices of the topology, for compiling only; nothing is attached to this machine.

    Raises:
        UnsupportedError: the platform's compiler is not installed; the message says what is.
        InputError: the compiler knows no such slice.
    """
    chip = topology.chip
    if chip.platform == "cuda":
        hosts, gpus = topology.shape
        return gpu_topology.devices(chip.name, gpus, hosts=hosts)
    _require_libtpu(chip)
    from jax.experimental import topologies

    # By default a v4 chip is two devices, which meshes refuse, and hosts have four chips.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"topology {topology.name!r}: the compiler does not know this slice ({reason})."
        ) from error
    return found.devices


def _require_libtpu(chip: Chip) -> None:
    if importlib.util.find_spec("libtpu") is None:
        raise UnsupportedError(
            f"compiling for {chip.name} needs libtpu, which is not installed; "
            "pip install 'jaxdecode[tpu]'. No TPU device is needed."
        )
