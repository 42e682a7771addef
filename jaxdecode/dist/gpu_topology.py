"""GPUs that are not there: devices for the compiler, from descriptions in `gpu_targets/`."""

import importlib.util
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jaxdecode.errors import UnknownNameError, UnsupportedError, near_matches

KINDS = ("a100", "h100", "h200", "b200")


def target_config(kind: str) -> str:
    """A GPU's limits and figures, in the text form of XLA's `GpuTargetConfigProto`.

    Raises:
        UnknownNameError: a kind that is not in KINDS; with near matches.
    """
    if kind not in KINDS:
        raise UnknownNameError(
            f"GPU {kind!r} is not known.{near_matches(kind, list(KINDS))} "
            f"Known: {', '.join(KINDS)}."
        )
    data = resources.files("jaxdecode.dist") / "gpu_targets" / f"{kind}.txtpb"
    return data.read_text(encoding="utf-8")


def device_kind(kind: str) -> str:
    """What `jax.Device.device_kind` says on such a GPU, e.g. "NVIDIA H100 80GB HBM3"."""
    return target_config(kind).partition('device_description_str: "')[2].partition('"')[0]


def figure(kind: str, name: str) -> float:
    """A number of the description, e.g. `device_memory_size` (units are in its file)."""
    found = re.search(rf"\b{name}: ([\d.]+)", target_config(kind))
    if found is None:
        raise UnknownNameError(f"the description of {kind} has no {name!r}.")
    return float(found[1])


def architecture(kind: str) -> str:
    """The name of its instruction set, e.g. "sm_90a"."""
    suffix = "a" if "ACCELERATED_FEATURES" in target_config(kind) else ""
    return f"sm_{figure(kind, 'major'):.0f}{figure(kind, 'minor'):.0f}{suffix}"


def devices(kind: str, num_gpus: int = 1, *, hosts: int = 1) -> Sequence[Any]:
    """Devices to compile for: `hosts` hosts of `num_gpus` GPUs each.

    Raises:
        UnknownNameError: a kind that is not in KINDS.
        UnsupportedError: the compiler is not installed, or JAX uses another platform here.
    """
    config = target_config(kind)
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise UnsupportedError(
            f"compiling for {kind} needs XLA's compiler for GPUs; no GPU is needed: "
            "pip install 'jaxdecode[gpu-aot]'."
        )
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(
            platform="cuda",  # "gpu" would look for a GPU
            topology_name=device_kind(kind),
            target_config=config,
            topology=f"1x{hosts}x{num_gpus}",
        )
    except NotImplementedError as error:
        raise UnsupportedError(
            f"compiling for {kind} without a GPU needs JAX_PLATFORMS=cpu when Python starts: "
            "otherwise JAX looks for a GPU, finds none, and sets its compiler aside."
        ) from error
    return topology.devices
