"""The words of every call of gcloud; nothing here runs anything."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from tpu_scripts.job import Job

# Where the checkout lies on a host, from the home folder.
REMOTE = "jaxdecode"
_TPU = ("gcloud", "compute", "tpus")
_VM = (*_TPU, "tpu-vm")
_QUEUE = (*_TPU, "queued-resources")


def create(job: Job) -> list[str]:
    """Makes the slice, or with `mode: queued` a request for it."""
    spot = ["--spot"] if job.mode == "spot" or job.queued.spot else []
    version = job.runtime or job.slice.runtime
    if job.mode != "queued":
        kind = [f"--accelerator-type={job.slice.type}", f"--version={version}"]
        return [*_VM, "create", job.name, *_where(job), *kind, *spot, *job.create_flags]
    kind = [f"--accelerator-type={job.slice.type}", f"--runtime-version={version}"]
    until = job.queued.valid_until
    limit = [] if until is None else [f"--valid-until-duration={until}"]
    request = [*_QUEUE, "create", job.name, *_where(job), f"--node-id={job.name}"]
    return [*request, *kind, *spot, *limit, *job.create_flags]


def delete(job: Job) -> list[str]:
    """Removes the slice, and its request."""
    if job.mode == "queued":
        return [*_QUEUE, "delete", job.name, *_where(job), "--force", "--quiet"]
    return [*_VM, "delete", job.name, *_where(job), "--quiet"]


def describe(job: Job, fields: str) -> list[str]:
    """Fields of the slice, separated by tabs."""
    return [*_VM, "describe", job.name, *_where(job), f"--format=value({fields})"]


def describe_request(job: Job) -> list[str]:
    """State of a queued request."""
    return [*_QUEUE, "describe", job.name, *_where(job), "--format=value(state.state)"]


def ssh(job: Job, command: str, logs: Path | None = None) -> list[str]:
    """A command on all hosts; with `logs`, what host 3 prints goes to 3.log there."""
    words = [*_VM, "ssh", job.name, *_reach(job, "all")]
    kept = [] if logs is None else [f"--output-directory={logs}"]
    return [*words, f"--command={command}", *kept]


def send(job: Job, paths: Sequence[Path]) -> list[str]:
    """Files to the checkout on all hosts."""
    target = f"{job.name}:{REMOTE}/"
    return [*_VM, "scp", *map(str, paths), target, *_reach(job, "all")]


def collect(job: Job, output: str, target: Path, worker: str) -> list[str]:
    """A folder of one host, into the folder `target`."""
    source = f"{job.name}:{REMOTE}/{output}"
    return [*_VM, "scp", "--recurse", source, f"{target}/", *_reach(job, worker)]


def copy_from_store(source: str, target: Path) -> list[str]:
    """A folder of a bucket."""
    return ["gcloud", "storage", "rsync", "--recursive", source, str(target)]


def on_host(job: Job, action: str, command: str | None = None) -> str:
    """`on_host.sh run` or `exec`, from the checkout.

    Args:
        job: the job.
        action: run or exec.
        command: something else than the job's own command; its outputs are then left alone.
    """
    words = ["bash", "tpu_scripts/on_host.sh", action, "--devices", job.devices]
    if command is None and job.store is not None:
        words += ["--bucket", job.store]
        words += [word for output in job.outputs for word in ("--output", output.rstrip("/"))]
    words += [word for pair in job.env.items() for word in ("--env", "=".join(pair))]
    return shlex.join([*words, job.command if command is None else command])


def install(job: Job, extra: str = "tpu") -> str:
    """`on_host.sh install`, from the checkout."""
    extras = ",".join((extra, *job.install.extras))
    wheel = [] if job.install.wheel is None else [job.install.wheel]
    return shlex.join(["bash", "tpu_scripts/on_host.sh", "install", extras, *wheel])


def _reach(job: Job, worker: str) -> list[str]:
    """How hosts are reached; the worker comes last, so that a loop of bash can add it."""
    return [*_where(job), "--quiet", *job.ssh_flags, f"--worker={worker}"]


def _where(job: Job) -> list[str]:
    return [f"--project={job.project}", f"--zone={job.zone}"]
