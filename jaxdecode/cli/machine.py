"""This machine: devices and who holds them, memory, disk, and what lies in the cache folders."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxdecode.cli.common import compile_cache
from jaxdecode.cli.findings import Finding
from jaxdecode.paths import cache_dir, offline

# Settings of other projects and ours that change what a command does.
VARIABLES = (
    "JAXDECODE_CACHE", "JAXDECODE_OFFLINE", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR",
    "JAX_ENABLE_COMPILATION_CACHE", "JAX_ENABLE_X64", "JAX_DISABLE_JIT", "XLA_FLAGS",
    "LIBTPU_INIT_ARGS", "TPU_VISIBLE_CHIPS", "CUDA_VISIBLE_DEVICES", "HF_HOME", "GLIBC_TUNABLES",
)  # fmt: skip
LOCK = Path("/tmp/libtpu_lockfile")
LARGE_PAGES = "glibc.malloc.hugetlb=1"
_PROBE = (
    "import json, jax; print(json.dumps([{'platform': d.platform, 'kind': d.device_kind, "
    "'bytes': (d.memory_stats() or {}).get('bytes_limit')} for d in jax.local_devices()]))"
)
# A TPU that another process holds lets JAX wait; one that is free answers in some 10 s.
_PROBE_SECONDS = 90
_LITTLE_DISK = 2e9
_LITTLE_MEMORY = 1e9


def devices(timeout: float = _PROBE_SECONDS) -> tuple[list[dict[str, Any]], Finding]:
    """What JAX finds, asked in a process of its own: it may hang, crash, and claim a TPU.

    Returns:
        platform, kind and bytes (None where JAX does not know) of each, and what to report.
    """
    command = [sys.executable, "-c", _PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        text = f"JAX did not find its devices within {timeout:.0f} s"
        return [], Finding("devices", "broken", text, "JAX_PLATFORMS=cpu goes without them")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return [], Finding("devices", "broken", f"JAX does not start: {lines[-1]}", _way_out())
    found = json.loads(done.stdout.splitlines()[-1])
    return found, Finding("devices", "ok", describe(found))


def _way_out() -> str:
    asked = os.environ.get("JAX_PLATFORMS")
    return f"unset JAX_PLATFORMS ({asked})" if asked else "python -c 'import jax; jax.devices()'"


def describe(found: Sequence[Mapping[str, Any]]) -> str:
    """Devices in words, such as `8 x TPU v5 lite (17.1 GB each)`."""
    counted = Counter((one["kind"], one["bytes"]) for one in found)
    return ", ".join(
        f"{number} x {kind}" + (f" ({size / 1e9:.1f} GB each)" if size else "")
        for (kind, size), number in counted.items()
    )


def tpus(dev: Path = Path("/dev")) -> list[Path]:
    """The device files of TPU chips."""
    return sorted([*dev.glob("accel[0-9]*"), *dev.glob("vfio/[0-9]*")])


def gpus(dev: Path = Path("/dev")) -> list[Path]:
    """The device files of NVIDIA GPUs."""
    return sorted(dev.glob("nvidia[0-9]*"))


def holders(files: Sequence[Path], proc: Path = Path("/proc")) -> dict[int, str]:
    """Processes that have one of these files open: id and command, as far as we may see."""
    wanted, found = set(map(str, files)), {}
    for folder in proc.glob("[0-9]*"):
        try:
            opened = {str(link.readlink()) for link in (folder / "fd").iterdir()}
            if opened & wanted:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                found[int(folder.name)] = b" ".join(words).decode(errors="replace").strip()[:80]
        except OSError:  # it ended, or belongs to another user
            continue
    return found


def held(files: Sequence[Path], *, proc: Path = Path("/proc"), lock: Path = LOCK) -> Finding | None:
    """Whether another process keeps the TPU: libtpu serves one, and fails in all others."""
    if not files:
        return None
    others = holders(files, proc)
    if others:
        who = ", ".join(f"process {pid} ({command})" for pid, command in others.items())
        text = f"held by {who}; one process at a time can use it"
        return Finding("TPU", "broken", text, "end that process, or set JAX_PLATFORMS=cpu here")
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        text = f"{lock} is locked by a process that cannot be seen from here"
        return Finding("TPU", "broken", text, "look for it as root or in other containers")
    except OSError:
        text = f"{lock} belongs to another user, so libtpu cannot take it"
        return Finding("TPU", "broken", text, f"if no process of theirs runs: sudo rm {lock}")
    return None


def accelerators(have: Mapping[str, str], dev: Path = Path("/dev")) -> Iterator[Finding]:
    """Hardware without its plugin, and plugins without their hardware."""
    cards = [name for name in ("jax_cuda12_plugin", "jax_cuda13_plugin") if _is_in(name, have)]
    if gpus(dev) and not cards:
        text = f"{len(gpus(dev))} NVIDIA GPUs, and JAX has no plugin for them"
        yield Finding("GPU", "warning", text, "pip install 'jaxdecode[cuda13]'")
    if cards and not gpus(dev):
        text = f"{cards[0]} is installed and no NVIDIA GPU is here: only `plan` can use it"
        yield Finding("GPU", "note", text, "if there should be one, `nvidia-smi` must list it")
    if tpus(dev) and not _is_in("libtpu", have):
        text = f"{len(tpus(dev))} TPU chips, and libtpu is not installed"
        yield Finding("TPU", "warning", text, "pip install 'jaxdecode[tpu]'")


def _is_in(module: str, have: Mapping[str, str]) -> bool:
    return module.replace("_", "-") in have or find_spec(module) is not None


def caches() -> list[dict[str, Any]]:
    """What is kept on disk: name, path and num_bytes of each, those that exist."""
    root, compiled = cache_dir(), compile_cache()
    hub = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser() / "hub"
    places = [
        *((f"model {path.name}", path) for path in sorted((root / "models").glob("*"))),
        *([] if compiled is None else [("compiled programs", compiled)]),
        ("measured step costs", root / "step_costs.json"),
        ("Hugging Face hub", hub),
    ]
    return [
        {"name": name, "path": str(path), "num_bytes": size(path)}
        for name, path in places
        if path.exists()
    ]


def size(path: Path) -> int:
    """Bytes of a file or of all files below a folder; links count as nothing."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            file = Path(folder, name)
            if not file.is_symlink() and file.exists():
                total += file.stat().st_size
    return total


def places() -> Iterator[Finding]:
    """Can the cache folder be written, is there space, are compiled programs kept?"""
    root = cache_dir()
    there = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if os.access(there, os.W_OK | os.X_OK):
        kept = sum(one["num_bytes"] for one in caches() if Path(one["path"]).is_relative_to(root))
        yield Finding("cache folder", "ok", f"{root}: {kept / 1e9:.2f} GB")
    else:
        fix = "set JAXDECODE_CACHE to a folder of yours"
        yield Finding("cache folder", "broken", f"{root} cannot be written", fix)
    yield Finding(
        "disk",
        "warning" if free < _LITTLE_DISK else "ok",
        f"{free / 1e9:.1f} GB free at {there}",
        "remove what `jaxdecode doctor` lists, or set JAXDECODE_CACHE" * (free < _LITTLE_DISK),
    )
    yield _programs()
    if offline():
        yield Finding("network", "note", "not used: JAXDECODE_OFFLINE is set")


def _programs() -> Finding:
    folder = compile_cache()
    if folder is None:
        text = "not kept: JAX_ENABLE_COMPILATION_CACHE is off, so every run compiles again"
        return Finding("compiled programs", "note", text)
    kept = size(folder) if folder.exists() else 0
    off = "JAX_ENABLE_COMPILATION_CACHE=false turns it off"
    return Finding("compiled programs", "ok", f"{folder}: {kept / 1e6:.1f} MB ({off})")


def memory(root: Path = Path("/")) -> Finding:
    """Main memory: of the machine, or what a container leaves of it."""
    try:
        text = (root / "proc/meminfo").read_text(encoding="ascii")
        known = {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}
        total, free = known["MemTotal"], known["MemAvailable"]
    except (OSError, KeyError):
        return Finding("memory", "note", "unknown on this system")
    try:
        limit = int((root / "sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int((root / "sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        total, free = min(total, limit), min(free, limit - used)
    except (OSError, ValueError):  # no container, or "max"
        pass
    text = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB available"
    if free < _LITTLE_MEMORY:
        return Finding("memory", "warning", text, "end other processes, or take a smaller model")
    return Finding("memory", "ok", text)


def large_pages(root: Path = Path("/")) -> Iterator[Finding]:
    """Whether the memory of a step, which XLA:CPU takes anew every time, comes in large pages."""
    try:
        file = root / "sys/kernel/mm/transparent_hugepage/enabled"
        on_request = "[madvise]" in file.read_text(encoding="ascii")
    except OSError:
        return
    if on_request and LARGE_PAGES not in os.environ.get("GLIBC_TUNABLES", ""):
        text = "memory comes in small pages, which makes training on a CPU slower"
        fix = f"export GLIBC_TUNABLES={LARGE_PAGES} (glibc 2.35 or later)"
        yield Finding("pages", "note", text, fix)


def variables() -> dict[str, str]:
    """The settings of the environment that are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}
