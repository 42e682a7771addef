"""Do all hosts of a slice start, with the same code, and what do they see together?

Run it on every host: `python tpu_scripts/preflight.py`. On TPU pods, SLURM and the like JAX knows
each process's place; elsewhere give all of --coordinator, --processes and --process-id.
"""

import sys
import time

import tyro

from jaxdecode.dist import hosts
from jaxdecode.errors import JaxdecodeError


def main(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    timeout: float = hosts.TIMEOUT_SECONDS,
) -> int:
    """Starts all processes and counts their devices.

    Args:
        coordinator: HOST:PORT of process 0.
        processes: how many processes there are.
        process_id: which of them this is, from 0.
        timeout: seconds until a missing host is an error.
    """
    begin = time.perf_counter()
    try:
        here = hosts.this_process(
            coordinator=coordinator,
            num_processes=processes,
            process_id=process_id,
            timeout=timeout,
        )
        hosts.start(here, {}, timeout=timeout)
    except JaxdecodeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    import jax
    from jax.experimental import multihost_utils

    counts = multihost_utils.process_allgather(jax.local_device_count()).reshape(-1).tolist()
    print(
        f"process {here.process_id} of {here.num_processes}: {jax.device_count()} "
        f"{jax.devices()[0].device_kind} devices, {counts} by process, "
        f"after {time.perf_counter() - begin:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
