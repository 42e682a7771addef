"""Do all hosts of a slice start, with the same code, and what do they see together?

Run it on every host, in the checkout: `python -m tpu_scripts.preflight`. On TPU pods, SLURM and the
like JAX knows each process's place; elsewhere give all of --coordinator, --processes and
--process-id.
"""

import os
import shutil
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tyro

from jaxdecode.dist import hosts
from jaxdecode.errors import HostsError, InputError, JaxdecodeError
from tpu_scripts import clocks

# Programs that are compiled under different flags wait for each other for ever.
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_ENABLE_X64")
_GB = 10**9


def main(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    timeout: float = hosts.TIMEOUT_SECONDS,
    devices: int | None = None,
    alone: bool = False,
    min_disk_gb: int = 0,
    max_skew: float = 10.0,
) -> int:
    """Starts all processes, compares them and counts their devices.

    Args:
        coordinator: HOST:PORT of process 0.
        processes: how many processes there are.
        process_id: which of them this is, from 0.
        timeout: seconds until a missing host, or devices that do not answer, are an error.
        devices: how many devices all processes must have together.
        alone: every process sees its own devices only, as `generate --out` wants it.
        min_disk_gb: free space that each host must have where the command runs.
        max_skew: seconds by which the clocks may differ.
    """
    begin = time.perf_counter()
    try:
        here = hosts.this_process(
            coordinator=coordinator,
            num_processes=processes,
            process_id=process_id,
            timeout=timeout,
        )
        disk = _disk(min_disk_gb)
        facts = {**_versions(), "the free disk": disk or "enough"}
        hosts.preflight(here, facts, timeout=timeout)
        if disk:
            raise InputError(
                f"{Path.cwd()} has {disk} free: make room, or give the job a smaller min_disk_gb."
            )
        clocks.check(here, max_skew=max_skew, timeout=timeout)
        seen = _devices(here, alone, timeout)
        _compare(here, seen, devices)
    except JaxdecodeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{seen[0]}, after {time.perf_counter() - begin:.1f} s")
    return 0


def _versions() -> dict[str, str]:
    """What else than the code must be the same on all hosts."""
    try:
        libtpu = version("libtpu")
    except PackageNotFoundError:
        libtpu = "not installed"
    return {"the version of libtpu": libtpu} | {name: os.environ.get(name, "") for name in _FLAGS}


def _disk(wanted_gb: int) -> str | None:
    """What is free, if it is too little."""
    free = shutil.disk_usage(Path.cwd()).free
    return f"{free / _GB:.1f} of {wanted_gb} GB" if free < wanted_gb * _GB else None


def _devices(here: hosts.Process, alone: bool, timeout: float) -> tuple[str, list[int]]:
    """A sentence about the devices, and how many each process has, as far as this one can see."""
    watch = threading.Timer(timeout, _give_up, (here, timeout))
    watch.daemon = True
    watch.start()
    try:
        if not alone:
            hosts.start(here, {}, timeout=timeout)
        import jax
        from jax.experimental import multihost_utils

        if alone:
            counts = [jax.local_device_count()]
        else:
            gathered = multihost_utils.process_allgather(jax.local_device_count())
            counts = gathered.reshape(-1).tolist()
        kind, total = jax.devices()[0].device_kind, jax.device_count()
    except RuntimeError as error:
        raise HostsError(
            f"process {here.process_id} has no devices ({error}). Another program may hold the "
            "chips: `tpu stop`, or `sudo lsof -w /dev/accel* /dev/vfio/*` on the host, shows it."
        ) from error
    finally:
        watch.cancel()
    place = f"process {here.process_id} of {here.num_processes}"
    return f"{place}: {total} {kind} devices, {counts} by process", counts


def _give_up(here: hosts.Process, timeout: float) -> None:
    # Threads in C++ that wait for another host cannot be interrupted.
    print(
        f"error: the devices of process {here.process_id} do not answer within {timeout:g} s: the "
        "chips wait for a host that has not started. Run the preflight on all hosts at once "
        "(`tpu preflight` does); if it did, `tpu delete` and `tpu create` the slice.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _compare(here: hosts.Process, seen: tuple[str, list[int]], wanted: int | None) -> None:
    """Refuses a number of devices that is not the slice's."""
    sentence, counts = seen
    # Alone, a process knows only its own share, and all have the same one.
    total = sum(counts) if len(counts) == here.num_processes else counts[0] * here.num_processes
    if wanted is None or total == wanted:
        return
    raise HostsError(
        f"{sentence}, but the slice has {wanted}. With too few, hosts do not see each other (was "
        "the check started on all of them?), JAX has no TPU plugin (install jaxdecode[tpu]), or "
        "the job's accelerator is not that of the slice (`tpu status`)."
    )


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
