"""Start-up of several processes that refuses to hang: who takes part, do they agree, then JAX.

`this_process` finds out which process this is, `preflight` meets the others and compares what must
agree, and `start` also joins them in `jax.distributed`, so that meshes can span all their devices.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import jaxdecode
from jaxdecode.dist import rendezvous
from jaxdecode.errors import HostsError, InputError
from jaxdecode.paths import config_dir

# Hosts of a pod get their command within seconds of each other; a minute more for slow imports.
TIMEOUT_SECONDS = 120.0
_SOURCES = (".py", ".yaml", ".json")
_PACKAGES = ("jaxdecode", "pallas_kernels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """One process among those of a run.

    Attributes:
        process_id: its number, from 0.
        num_processes: how many there are.
        coordinator: "host:port" of process 0; None for processes that do not meet.
    """

    process_id: int = 0
    num_processes: int = 1
    coordinator: str | None = None

    def __post_init__(self) -> None:
        """Refuses numbers that no process can have."""
        if self.num_processes < 1:
            raise InputError(f"{self.num_processes} processes are too few; there must be >= 1.")
        if not 0 <= self.process_id < self.num_processes:
            raise InputError(
                f"process id {self.process_id} is out of range; with {self.num_processes} "
                f"processes it must be from 0 to {self.num_processes - 1}."
            )
        if self.coordinator is not None:
            _address(self.coordinator)


def this_process(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> Process:
    """Which process this is: as given, or as JAX sees from the environment (TPU pods, SLURM, ...).

    With nothing given and no such environment it is the only one. A number of processes and an id
    without a coordinator are processes that do not meet.

    Args:
        coordinator: "host:port" of process 0.
        num_processes: how many processes there are.
        process_id: which of them this is.
        timeout: seconds in which the environment must answer.

    Raises:
        InputError: numbers out of range, or too few of them and no environment that has the rest.
        HostsError: the environment is there but does not answer.
    """
    if num_processes is not None and process_id is not None:
        return Process(process_id=process_id, num_processes=num_processes, coordinator=coordinator)
    given = (coordinator, num_processes, process_id)
    found = _detect(*given, timeout)
    if found == (None, None, None):
        return Process()
    if found[1] is None or found[2] is None:
        raise InputError(
            "this is no environment that tells a process its place, so give the number of "
            f"processes and the process id; got {num_processes} and {process_id}."
        )
    return Process(process_id=found[2], num_processes=found[1], coordinator=found[0])


def preflight(here: Process, facts: Mapping[str, str], *, timeout: float = TIMEOUT_SECONDS) -> None:
    """Returns once all processes are there, with equal facts and equal code.

    It uses plain sockets and touches no device, so it never waits longer than `timeout`. A process
    without a coordinator, or alone, has nobody to meet.

    Args:
        here: this process.
        facts: what all must agree on besides the code, by name.
        timeout: seconds to wait for the others.

    Raises:
        HostsError: which process is missing, came twice or differs, and in what.
    """
    if here.coordinator is None or here.num_processes == 1:
        return
    member = rendezvous.Member(
        process_id=here.process_id,
        num_processes=here.num_processes,
        host=rendezvous.describe_here(),
        facts={**code_facts(), **facts},
    )
    rendezvous.meet(_address(here.coordinator), member, timeout)


def start(here: Process, facts: Mapping[str, str], *, timeout: float = TIMEOUT_SECONDS) -> None:
    """`preflight`, then `jax.distributed.initialize`; call it before any computation.

    From then on the processes share their fate: when one dies, JAX ends the others.

    Args:
        here: this process; it needs a coordinator unless it is alone.
        facts: what all must agree on besides the code, by name.
        timeout: seconds for the preflight, and again for JAX.

    Raises:
        InputError: no coordinator.
        HostsError: as `preflight`, or JAX could not connect the processes.
    """
    if here.num_processes == 1:
        return
    if here.coordinator is None:
        raise InputError(
            f"{here.num_processes} processes need a coordinator, host:port of process 0."
        )
    preflight(here, facts, timeout=timeout)
    import jax

    try:
        jax.distributed.initialize(
            coordinator_address=here.coordinator,
            num_processes=here.num_processes,
            process_id=here.process_id,
            initialization_timeout=max(int(timeout), 1),
        )
    except (RuntimeError, ValueError) as error:
        raise HostsError(
            f"all {here.num_processes} processes are there, but jax.distributed did not connect "
            f"process {here.process_id} to {here.coordinator}: {error}"
        ) from error


@functools.cache
def code_facts() -> dict[str, str]:
    """Versions and a digest of the code: what makes two hosts compute the same."""
    return {
        "the code of jaxdecode": f"{jaxdecode.__version__} {code_digest()[:12]}",
        "the version of jax": f"{version('jax')} (jaxlib {version('jaxlib')})",
        "the version of Python": ".".join(platform.python_version_tuple()[:2]),
    }


def code_digest() -> str:
    """SHA-256 over the package's source files and shipped configs, wherever they are installed."""
    roots = {name: _package_folder(name) for name in _PACKAGES} | {"configs": config_dir()}
    digest = hashlib.sha256()
    for name, root in roots.items():
        if root is None:
            continue
        for path in sorted(root.rglob("*")):
            inside = path.relative_to(root)
            # The copy of the configs in a wheel counts once, as configs.
            if path.suffix in _SOURCES and inside.parts[0] != "_configs":
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{name}/{inside.as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(
            f"coordinator {coordinator!r} is not of the form host:port, such as 10.0.0.2:8476."
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def _detect(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> tuple[str | None, int | None, int | None]:
    """The three values, those not given filled in by JAX's detection of clusters.

    JAX offers it only inside `jax.distributed.initialize`, too late for a preflight; this is the
    one function that reaches for its private part.
    """
    try:
        from jax._src.clusters import ClusterEnv
    except ImportError:  # moved in a later version: then everything must be given
        return coordinator, num_processes, process_id
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, num_processes, process_id, None, None, max(int(timeout), 1)
        )
    except Exception as error:
        raise HostsError(
            f"the cluster that JAX sees here does not tell this process its place ({error}); give "
            "coordinator, number of processes and process id yourself."
        ) from error
    return found[0], found[1], found[2]
