"""The machine that times were taken on."""

import os
import platform
from pathlib import Path
from typing import Any

import jax

import jaxdecode
from jaxdecode.language_model import LanguageModel


def describe(lm: LanguageModel) -> dict[str, Any]:
    """What times depend on besides the code."""
    return {
        "cpu": _cpu_model(),
        "cores": num_cores(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxdecode": jaxdecode.__version__,
        "dtype": lm.dtype.name,
        "kv_dtype": lm.kv_dtype.name,
    }


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
