"""The command line of `tpu`."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from tpu_scripts import job as jobs
from tpu_scripts import render, verbs
from tpu_scripts.resume import resume
from tpu_scripts.shell import CallError, Shell, note

ROOT = Path(__file__).resolve().parents[1]
_VERBS = {
    "create": "make the slice, and wait for it",
    "bootstrap": "install jaxdecode and the job's files on all hosts",
    "preflight": "compare the hosts and count their devices",
    "run": "run the command on all hosts; once more, to go back to it",
    "resume": "all of this to the end, again after each preemption",
    "stop": "end the command on all hosts",
    "fetch": "bring the outputs here",
    "status": "say what the cloud has",
    "delete": "remove the slice, or the request for it",
}
_OTHERS = {
    "xpk": "print the command of xpk for the job (GKE)",
    "sky": "print the SkyPilot file for the job",
    "slurm": "print the SLURM script for the job (GPUs)",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a verb on a job file; returns the exit code, which for `run` is that of the command."""
    given = parser().parse_args(arguments)
    shell = Shell(dry_run=given.dry_run)
    try:
        job = jobs.read(given.job)
        # Paths in a job are those of the checkout.
        os.chdir(ROOT)
        if given.verb in _OTHERS:
            print(getattr(render, given.verb)(job))
            return 0
        shell.paste(f"cd {shlex.quote(str(ROOT))}")
        if given.verb == "resume":
            resume(job, shell, given.poll, given.restarts)
        elif given.verb == "create":
            verbs.create(job, shell, given.poll)
        else:
            getattr(verbs, given.verb)(job, shell)
    except jobs.JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code if isinstance(error, CallError) else 1
    except KeyboardInterrupt:
        note("stopped here; what runs on the hosts goes on (`tpu stop` ends it)")
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """What reads the command line."""
    verbs_text = "\n".join(f"  {name:10} {text}" for name, text in (_VERBS | _OTHERS).items())
    found = argparse.ArgumentParser(
        prog="tpu",
        description=f"Runs a job on Cloud TPU, from one YAML file.\n\nverbs:\n{verbs_text}",
        epilog="docs/tpu_pods.md has the keys of a job file and the way from zero to a result.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("verb", choices=[*_VERBS, *_OTHERS], metavar="VERB")
    found.add_argument("job", type=Path, metavar="JOB", help="such as tpu_scripts/jobs/x.yaml")
    found.add_argument(
        "--dry-run", action="store_true", help="print the commands, to be pasted into bash"
    )
    found.add_argument(
        "--poll", type=float, default=verbs.POLL_SECONDS, metavar="SECONDS",
        help="create and resume: how often the cloud is asked (default %(default)g)",
    )  # fmt: skip
    found.add_argument(
        "--restarts", type=int, default=20, metavar="N",
        help="resume: how often a lost slice is made again (default %(default)s)",
    )  # fmt: skip
    return found
