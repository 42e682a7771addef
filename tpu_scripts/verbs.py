"""What `tpu VERB JOB` does: each verb is a few calls, in order."""

import re
import shlex
import subprocess
import time
from pathlib import Path

from tpu_scripts import gcloud
from tpu_scripts.job import Job, JobError
from tpu_scripts.shell import CallError, Shell, note
from tpu_scripts.states import State, look

POLL_SECONDS = 30.0
_HOSTS = "networkEndpoints.len()"


def create(job: Job, shell: Shell, poll: float = POLL_SECONDS) -> None:
    """Makes the slice; a queued one is waited for."""
    shell.call(gcloud.create(job))
    if job.mode == "queued":
        wait(job, shell, poll)


def wait(job: Job, shell: Shell, poll: float) -> None:
    """Returns once a queued request has its slice.

    Raises:
        JobError: the request has failed.
    """
    question = shlex.join(gcloud.describe_request(job))
    shell.paste(f'until [ "$({question})" = ACTIVE ]; do sleep {poll:g}; done')
    told = None
    while not shell.dry_run:
        word = shell.ask(gcloud.describe_request(job))
        if word == "ACTIVE":
            return
        if word in ("FAILED", "SUSPENDED"):
            raise JobError(
                f"the request {job.name} is {word}; `tpu delete` it, then try again with a later "
                "queued.valid_until or in another zone."
            )
        if word != told:
            note(f"the request is {word}; asking again every {poll:g} s")
        told = word
        time.sleep(poll)


def bootstrap(job: Job, shell: Shell) -> None:
    """Brings code and files to all hosts and installs them there."""
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
    )
    if changed.stdout:
        note("changes that are not committed are not sent: the hosts get the last commit")
    wheel = job.install.wheel
    # A wheel brings the package; the scripts and pins come with the commit all the same.
    parts = ["tpu_scripts", "constraints"] if wheel else []
    source, files = job.folder / "source.tar.gz", job.folder / "files.tar.gz"
    shell.call(["mkdir", "-p", str(job.folder)])
    shell.call(["git", "archive", "--format=tar.gz", f"--output={source}", "HEAD", *parts])
    packed = [source]
    if job.files or wheel:
        names = [*job.files, *([wheel] if wheel else [])]
        shell.call(["tar", "-czf", str(files), *names])
        packed.append(files)
    # `files.tar.gz` of an earlier job would bring its files back.
    clean = f"mkdir -p {gcloud.REMOTE} && rm -f {gcloud.REMOTE}/files.tar.gz"
    shell.call(gcloud.ssh(job, clean))
    shell.call(gcloud.send(job, packed))
    unpack = "tar -xzf source.tar.gz tpu_scripts"
    shell.call(gcloud.ssh(job, f"cd {gcloud.REMOTE} && {unpack} && {gcloud.install(job)}"))


def preflight(job: Job, shell: Shell) -> None:
    """Compares the hosts and counts their devices, on all of them."""
    alone = ["--alone"] if job.devices == "host" else []
    words = ["python", "-m", "tpu_scripts.preflight", "--devices", str(job.slice.chips), *alone]
    check = shlex.join([*words, "--min-disk-gb", str(job.min_disk_gb)])
    shell.call(gcloud.ssh(job, f"cd {gcloud.REMOTE} && {gcloud.on_host(job, 'exec', check)}"))


def run(job: Job, shell: Shell) -> None:
    """Runs the job's command on all hosts and waits for it; each host has its log here.

    Raises:
        CallError: a host failed; its code is the first that is not 0.
    """
    logs = job.folder / "logs"
    shell.call(["mkdir", "-p", str(logs)])
    if not shell.dry_run:
        note(f"running; follow it with: tail -f {logs}/0.log")
    command = f"cd {gcloud.REMOTE} && {gcloud.on_host(job, 'run')}"
    try:
        shell.call(gcloud.ssh(job, command, logs))
    except CallError:
        for line in failures(logs):
            note(line)
        raise


def failures(logs: Path) -> list[str]:
    """One line for every host whose log does not end with exit code 0."""
    found = []
    for path in sorted(logs.glob("*.log"), key=lambda path: (len(path.name), path.name)):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        code = re.fullmatch(r"host \S+: exit code (\d+)", lines[-1]) if lines else None
        said = lines if code is None else lines[:-1]
        last = next((line for line in reversed(said) if line.strip()), "it said nothing")
        if code is None:
            found.append(f"worker {path.stem} was cut off: {last} ({path})")
        elif code[1] != "0":
            found.append(f"worker {path.stem} ended with {code[1]}: {last} ({path})")
    return found


def stop(job: Job, shell: Shell) -> None:
    """Ends the job's command on all hosts; what it has written stays."""
    shell.call(gcloud.ssh(job, f"cd {gcloud.REMOTE} && bash tpu_scripts/on_host.sh stop"))


def fetch(job: Job, shell: Shell) -> None:
    """Brings the outputs here: from the bucket, or else from the hosts that have them."""
    if not job.outputs:
        raise JobError("outputs is empty; name the folders that the command writes.")
    results = job.folder / "results"
    for output in job.outputs:
        target = results / output.rstrip("/")
        if job.store is not None:
            shell.call(["mkdir", "-p", str(target)])
            shell.call(gcloud.copy_from_store(f"{job.store}/{output.rstrip('/')}", target))
        else:
            shell.call(["mkdir", "-p", str(target.parent)])
            _collect(job, shell, output.rstrip("/"), target.parent)
        shell.paste(f"[ ! -e {target}/job.json ] || jaxdecode merge {target}")
        if not shell.dry_run and (target / "job.json").exists():
            shell.call(["jaxdecode", "merge", str(target)])
    if not shell.dry_run:
        note(f"the outputs are in {results}")


def _collect(job: Job, shell: Shell, output: str, target: Path) -> None:
    if job.devices == "slice":
        # One program over all hosts: its first process writes.
        shell.call(gcloud.collect(job, output, target, "0"))
        return
    count = gcloud.describe(job, _HOSTS)
    each = shlex.join(gcloud.collect(job, output, target, ""))
    shell.paste(f'for i in $(seq 0 $(($({shlex.join(count)}) - 1))); do {each}"$i"; done')
    if not shell.dry_run:
        for host in range(int(shell.ask(count))):
            shell.call(gcloud.collect(job, output, target, str(host)))


def delete(job: Job, shell: Shell) -> None:
    """Removes the slice and its request; a bucket stays as it is."""
    try:
        shell.call(gcloud.delete(job))
    except CallError as error:
        if not error.is_absent:
            raise
        note(f"{job.name} was not there")


def status(job: Job, shell: Shell) -> None:
    """Says what the cloud has."""
    if shell.dry_run:
        calls = [gcloud.describe_request(job)] if job.mode == "queued" else []
        for call in [*calls, gcloud.describe(job, "state")]:
            shell.call(call)
        return
    state, word = look(job, shell)
    line = f"{job.name}: {word} ({job.slice.type}, {job.zone}, {job.mode})"
    if state is State.READY:
        health, _, hosts = shell.ask(gcloud.describe(job, f"health,{_HOSTS}")).partition("\t")
        line += f", {health or 'health unknown'}, {hosts} host{'s' if hosts != '1' else ''}"
    print(line)
