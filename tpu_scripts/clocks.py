"""Do the clocks of all hosts agree? Tokens, logs and uploads by age rely on it."""

import contextlib
import socket
import struct
import time
from collections.abc import Callable

from jaxdecode.dist.hosts import Process
from jaxdecode.errors import HostsError

_RETRY_SECONDS = 0.1


def check(
    here: Process,
    *,
    max_skew: float,
    timeout: float,
    now: Callable[[], float] = time.time,
) -> float:
    """Compares this host's clock with that of process 0; returns the difference in seconds.

    Process 0 answers everybody once, at the coordinator's port; so call it on all processes, after
    they have met.

    Args:
        here: this process.
        max_skew: seconds by which the clocks may differ.
        timeout: seconds to wait for the others.
        now: this host's clock.

    Raises:
        HostsError: a clock is wrong, or process 0 or another process did not come.
    """
    if here.coordinator is None or here.num_processes == 1:
        return 0.0
    host, _, port = here.coordinator.rpartition(":")
    try:
        if here.process_id == 0:
            _tell(int(port), here.num_processes - 1, timeout, now)
            return 0.0
        skew = _ask(host.strip("[]"), int(port), timeout, now)
    except (OSError, struct.error) as error:
        raise HostsError(
            f"process {here.process_id} could not compare its clock at {here.coordinator} within "
            f"{timeout:g} s ({error}); start the check on all hosts."
        ) from error
    if abs(skew) > max_skew:
        raise HostsError(
            f"the clock of process {here.process_id} on {socket.gethostname()} is {skew:+.1f} s "
            f"from that of process 0; at most {max_skew:g} s are allowed. Set it: sudo chronyc "
            "makestep, or sudo systemctl restart chrony."
        )
    return skew


def _tell(port: int, others: int, timeout: float, now: Callable[[], float]) -> None:
    deadline = time.monotonic() + timeout
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with contextlib.ExitStack() as lines:
        asked = []
        with socket.create_server(("", port), family=family, dualstack_ipv6=dual) as server:
            for _ in range(others):
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                line = lines.enter_context(server.accept()[0])
                line.settimeout(timeout)
                line.recv(1)
                line.sendall(struct.pack("!d", now()))
                asked.append(line)
        # Closed before anybody is sent on: what starts next uses the same port.
        for line in asked:
            with contextlib.suppress(OSError):
                line.sendall(b"!")


def _ask(host: str, port: int, timeout: float, now: Callable[[], float]) -> float:
    """This clock minus that of process 0, at the middle of question and answer."""
    with _connect(host, port, timeout) as line:
        line.settimeout(timeout)
        begin = now()
        line.sendall(b"?")
        (theirs,) = struct.unpack("!d", line.recv(8))
        skew = (begin + now()) / 2 - theirs
        line.recv(1)
        return skew


def _connect(host: str, port: int, timeout: float) -> socket.socket:
    """Tries until process 0 listens."""
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection((host, port), timeout)
        if time.monotonic() >= deadline:
            raise TimeoutError("it does not listen")
        time.sleep(_RETRY_SECONDS)
