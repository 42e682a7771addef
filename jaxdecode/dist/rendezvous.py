"""Processes meet over plain TCP and compare facts, before anything starts that can hang or abort.

JAX's own coordination service ends the process from C++ when a host is missing, so Python never
gets to say which. Here process 0 listens, every other process sends one line of JSON and waits, and
all of them get the same verdict.
"""

import contextlib
import dataclasses
import errno
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple

from jaxdecode.errors import HostsError

_PROTOCOL = "jaxdecode-rendezvous-1"
_MAX_BYTES = 2**20
# How much longer than its own timeout a process waits for the verdict, so that it can arrive.
_GRACE_SECONDS = 2.0
_RETRY_SECONDS = 0.2
# For one line of somebody who has connected: nobody else is heard meanwhile.
_LINE_SECONDS = 5.0
# Names and values in messages; options can be long texts.
_MAX_SHOWN = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """What one process says of itself.

    Attributes:
        process_id: its number, from 0.
        num_processes: how many it expects, itself included.
        host: where it runs, for messages.
        facts: what all must agree on.
    """

    process_id: int
    num_processes: int
    host: str
    facts: Mapping[str, str]

    def __str__(self) -> str:
        return f"process {self.process_id} on {self.host}"


def describe_here() -> str:
    """Host name and operating-system process, for messages."""
    return f"{socket.gethostname()} (pid {os.getpid()})"


def meet(address: tuple[str, int], member: Member, timeout: float) -> None:
    """Returns once all processes are here and agree.

    Args:
        address: host and port of process 0, which listens there on all its interfaces. The port is
            free again afterwards.
        member: this process.
        timeout: seconds from now until those who are missing are an error.

    Raises:
        HostsError: who is missing, who came twice, or what differs where.
    """
    deadline = time.monotonic() + timeout
    if member.process_id == 0:
        problem = _gather(address[1], member, deadline, timeout)
    else:
        problem = _join(address, member, deadline, timeout)
    if problem is not None:
        raise HostsError(problem)


class _Arrival(NamedTuple):
    """A process that waits for the verdict, its line, and until when."""

    member: Member
    line: socket.socket
    deadline: float


def _gather(port: int, own: Member, deadline: float, timeout: float) -> str | None:
    """Process 0: what is wrong, or None; every process that came is told the same."""
    problem: str | None = None
    arrivals: list[_Arrival] = []
    with contextlib.ExitStack() as stack:
        # Closed before anybody is sent on: what starts next may use the same port.
        with _listen(port) as server:
            while problem is None and len(_present(own, arrivals)) < own.num_processes:
                # The first to give up ends it for all, so that all get the same verdict in time.
                until = min([deadline, *(x.deadline for x in arrivals if _is_open(x.line))])
                if time.monotonic() >= until:
                    break
                arrival = _accept(server, until)
                if arrival is not None:
                    stack.enter_context(arrival.line)
                    problem = _misfit(arrival.member, own, _present(own, arrivals))
                    arrivals.append(arrival)
        if problem is None:
            problem = _verdict(_present(own, arrivals), own.num_processes, timeout)
        for arrival in arrivals:
            with contextlib.suppress(OSError):
                _send(arrival.line, {"problem": problem})
    return problem


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise HostsError(
            f"process 0 cannot listen on port {port} of {describe_here()} ({error.strerror}); "
            "another process 0 or another program may have it: end it, or use another port."
        ) from error


def _accept(server: socket.socket, until: float) -> _Arrival | None:
    """Who connects next; None if nobody does in time, or only a port scanner or the like."""
    server.settimeout(max(until - time.monotonic(), 0.001))
    try:
        line, _ = server.accept()
    except TimeoutError:
        return None
    try:
        message = _receive(line, min(until, time.monotonic() + _LINE_SECONDS))
        if message.pop("protocol") == _PROTOCOL:
            deadline = time.monotonic() + float(message.pop("seconds"))
            return _Arrival(Member(**message), line, deadline)
    except (OSError, ValueError, TypeError, KeyError):
        pass
    line.close()
    return None


def _misfit(new: Member, own: Member, present: Mapping[int, Member]) -> str | None:
    """Why a process that came cannot belong to this run, whoever else may come."""
    if new.num_processes != own.num_processes:
        return (
            f"the number of processes differs: {own} expects {own.num_processes}, {new} expects "
            f"{new.num_processes}."
        )
    if new.process_id in present:
        return f"process id {new.process_id} was given twice: {present[new.process_id]}, {new}."
    return None


def _present(own: Member, arrivals: list[_Arrival]) -> dict[int, Member]:
    """Those who are here, by id; who was ended while it waited has closed its line."""
    waiting = {x.member.process_id: x.member for x in arrivals if _is_open(x.line)}
    return dict(sorted((waiting | {0: own}).items()))


def _is_open(line: socket.socket) -> bool:
    line.setblocking(False)
    try:
        # Nobody sends a second line, so what can be read is the end.
        line.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _verdict(here: Mapping[int, Member], num_processes: int, timeout: float) -> str | None:
    problems = []
    missing = sorted(set(range(num_processes)) - set(here))
    if missing:
        problems.append(
            f"{len(here)} of {num_processes} processes joined in time ({timeout:g} s); missing: "
            f"{_ids(missing)}. Joined: {', '.join(map(str, here.values()))}. Start the same "
            "command on every host, each with its own process id."
        )
    problems += _differences(list(here.values()))
    return " ".join(problems) or None


def _differences(members: list[Member]) -> list[str]:
    """One sentence per fact on which the members disagree."""
    found = []
    names = dict.fromkeys(name for member in members for name in member.facts)
    for name in names:
        sides: dict[str | None, list[Member]] = {}
        for member in members:
            sides.setdefault(member.facts.get(name), []).append(member)
        if len(sides) > 1:
            told = [f"{_shown(value)} on {_group(side)}" for value, side in sides.items()]
            found.append(f"{name} differs: {', '.join(told)}.")
    return found


def _group(members: list[Member]) -> str:
    if len(members) == 1:
        return str(members[0])
    return f"{_ids([member.process_id for member in members])} (as on {members[0].host})"


def _ids(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"process{'es' if len(numbers) > 1 else ''} {shown}"


def _shown(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]}..."


def _join(address: tuple[str, int], member: Member, deadline: float, timeout: float) -> str | None:
    """Any process but 0: what process 0 says is wrong, or None."""
    where = f"process 0 at {address[0]}:{address[1]}"
    with _connect(address, member, deadline, timeout) as line:
        try:
            seconds = deadline - time.monotonic()
            hello = {"protocol": _PROTOCOL, "seconds": seconds, **dataclasses.asdict(member)}
            _send(line, hello)
            return _receive(line, deadline + _GRACE_SECONDS)["problem"]
        except TimeoutError:
            return (
                f"{where} answers, but not all {member.num_processes} processes joined it within "
                f"{timeout:g} s of the start of {member}."
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            return (
                f"{where} ended, or is no process of jaxdecode, before {member} got an answer "
                f"({error})."
            )


def _connect(
    address: tuple[str, int], member: Member, deadline: float, timeout: float
) -> socket.socket:
    """Tries until process 0 listens."""
    while True:
        left = deadline - time.monotonic()
        try:
            line = socket.create_connection(address, min(max(left, _RETRY_SECONDS), _LINE_SECONDS))
            if line.getsockname() != line.getpeername():
                return line
            # Nobody listens, and the system gave our end the very port that we knocked at.
            line.close()
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        except OSError as error:
            if time.monotonic() + _RETRY_SECONDS >= deadline:
                raise HostsError(
                    f"{member} could not reach process 0 at {address[0]}:{address[1]} within "
                    f"{timeout:g} s ({error.strerror or error}). Start process 0 there, and check "
                    "that the port is open between the hosts."
                ) from error
        time.sleep(_RETRY_SECONDS)


def _send(line: socket.socket, message: Mapping[str, object]) -> None:
    line.settimeout(_LINE_SECONDS)
    line.sendall(json.dumps(message).encode() + b"\n")


def _receive(line: socket.socket, deadline: float) -> dict:
    """One line of JSON, an object.

    Raises:
        TimeoutError: it did not come in time.
        ValueError: it is something else, or the other side has gone.
    """
    text = b""
    while not text.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        line.settimeout(left)
        piece = line.recv(2**16)
        text += piece
        if not piece or len(text) > _MAX_BYTES:
            raise ValueError("the connection was closed" if not piece else "too long a message")
    message = json.loads(text)
    if not isinstance(message, dict):
        raise ValueError("not a message of ours")
    return message
