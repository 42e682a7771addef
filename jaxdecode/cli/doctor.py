"""`jaxdecode doctor`: is this machine fit to decode on, and if not, what to do."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from jaxdecode.cli import machine, packages
from jaxdecode.cli.common import AsJson, Debug, colours, print_json
from jaxdecode.cli.findings import Finding

_COLOURS = {"ok": "32", "note": "36", "warning": "33", "broken": "31"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check packages, devices, memory, disk and caches, and say what to do about them.

    Exit code 1 if something is broken. Devices are looked for in a process of its own, which ends
    again; nothing is changed and nothing is fetched.
    """

    json: AsJson = False
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        devices, found = examine()
        broken = any(finding.status == "broken" for finding in found)
        if self.json:
            print_json(
                {
                    "ok": not broken,
                    "versions": packages.versions(),
                    "devices": devices,
                    "findings": [finding._asdict() for finding in found],
                    "caches": machine.caches(),
                    "variables": machine.variables(),
                }
            )
        else:
            print("\n".join(_report(found)))
        return 1 if broken else 0


def examine() -> tuple[list[dict[str, Any]], list[Finding]]:
    """The devices that JAX finds, and everything there is to say."""
    taken = machine.held(machine.tpus())
    devices, seen = ([], taken) if taken else machine.devices()
    have = packages.installed()
    on_cpu = all(device["platform"] == "cpu" for device in devices)
    return devices, [
        *packages.findings(),
        seen,
        *machine.accelerators(have),
        machine.memory(),
        *(machine.large_pages() if on_cpu else ()),
        *machine.places(),
    ]


def _report(found: Sequence[Finding]) -> Iterator[str]:
    yield ", ".join(f"{name} {version}" for name, version in packages.versions().items())
    yield ""
    width = max(len(finding.name) for finding in found)
    for finding in found:
        yield f"{_status(finding.status)}  {finding.name.ljust(width)}  {finding.text}"
        if finding.fix:
            yield f"{' ' * (len('warning') + width + 4)}-> {finding.fix}"
    yield ""
    for kept in machine.caches():
        yield f"{kept['num_bytes'] / 1e6:10.1f} MB  {kept['name']}: {kept['path']}"
    for name, value in machine.variables().items():
        yield f"{name}={value}"


def _status(status: str) -> str:
    text = status.ljust(len("warning"))
    return f"\x1b[{_COLOURS[status]}m{text}\x1b[0m" if colours(sys.stdout) else text
