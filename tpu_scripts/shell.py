"""Runs commands, or prints them so that they can be pasted into bash."""

import dataclasses
import shlex
import subprocess
import sys
from collections.abc import Sequence

from tpu_scripts.job import JobError

# What the cloud says, and what helps. The first that matches is told.
_ADVICE = (
    (
        ("Quota limit", "quota exceeded", "QUOTA_EXCEEDED"),
        "the project has no quota left for this kind of chip: ask for the quota that is named "
        "above on the console's page IAM & Admin > Quotas, or use another zone or mode (spot and "
        "on-demand chips have quotas of their own).",
    ),
    (
        ("no more capacity", "RESOURCE_EXHAUSTED", "Insufficient", "STOCKOUT"),
        "the zone has no free chips of this kind now: try another zone, `mode: spot`, or "
        "`mode: queued`, which waits for them; `tpu resume` tries again by itself.",
    ),
    (
        ("ALREADY_EXISTS", "already exists"),
        "a slice of this name is there: `tpu status` shows it, `tpu run` uses it, `tpu delete` "
        "removes it.",
    ),
    (
        ("has not been used in project", "SERVICE_DISABLED"),
        "enable the API: gcloud services enable tpu.googleapis.com --project=PROJECT",
    ),
    (
        ("PERMISSION_DENIED", "does not have permission"),
        "this account may not do that in this project: it needs the role roles/tpu.admin.",
    ),
    (
        ("Reauthentication", "active account selected", "credentials"),
        "log in: gcloud auth login",
    ),
    (
        ("INVALID_ARGUMENT", "NOT_FOUND", "was not found"),
        "this zone may not have that accelerator or runtime: gcloud compute tpus tpu-vm "
        "accelerator-types list --zone=ZONE and ... tpu-vm versions list --zone=ZONE show what it "
        "has.",
    ),
    (
        ("ssh-add", "Could not open a connection to your authentication agent"),
        "several hosts need the key in an agent: eval $(ssh-agent); ssh-add "
        "~/.ssh/google_compute_engine",
    ),
)
_NO_CAPACITY = _ADVICE[1][0]


class CallError(JobError):
    """A command that failed."""

    def __init__(self, argv: Sequence[str], code: int, output: str, *, shown: bool):
        self.code, self.output = code, output
        said = "" if shown or not output.strip() else f"\n{output.strip()}"
        advice = advice_for(output)
        help_text = f"\nadvice: {advice}" if advice else ""
        super().__init__(f"exit code {code} of: {shlex.join(argv)}{said}{help_text}")

    @property
    def is_absent(self) -> bool:
        """Whether the cloud has no such thing."""
        return "NOT_FOUND" in self.output or "was not found" in self.output

    @property
    def lacks_capacity(self) -> bool:
        """Whether the same call may work later."""
        quota = any(text in self.output for text in _ADVICE[0][0])
        return not quota and any(text in self.output for text in _NO_CAPACITY)


def advice_for(output: str) -> str | None:
    """What helps against an error of the cloud, if it is a known one."""
    found = (advice for texts, advice in _ADVICE if any(text in output for text in texts))
    return next(found, None)


@dataclasses.dataclass(frozen=True)
class Shell:
    """Runs commands, or only prints them.

    Attributes:
        dry_run: print, do nothing.
    """

    dry_run: bool = False

    def call(self, argv: Sequence[str]) -> None:
        """Runs a command; what it prints is shown, and kept for the error.

        Raises:
            CallError: it failed.
        """
        if self.dry_run:
            self.paste(shlex.join(argv))
            return
        with _start(argv) as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                sys.stderr.write(line)
                said.append(line)
        if process.returncode:
            raise CallError(argv, process.returncode, "".join(said), shown=True)

    def ask(self, argv: Sequence[str]) -> str:
        """Runs a command that changes nothing, dry run or not, and returns what it prints.

        Raises:
            CallError: it failed.
        """
        with _start(argv, stdout=subprocess.PIPE) as process:
            output, said = process.communicate()
        if process.returncode:
            raise CallError(argv, process.returncode, said, shown=False)
        return output.strip()

    def paste(self, line: str) -> None:
        """In a dry run, prints a line of bash that does what Python does otherwise."""
        if self.dry_run:
            print(line)


def note(text: str) -> None:
    """Tells the user something, beside the output."""
    print(f"tpu: {text}", file=sys.stderr, flush=True)


def _start(argv: Sequence[str], stdout: int | None = None) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(argv, text=True, stdout=stdout, stderr=subprocess.PIPE)
    except FileNotFoundError as error:
        where = {"gcloud": "install the Google Cloud CLI (cloud.google.com/sdk/docs/install)"}
        hint = where.get(argv[0], "install it, or activate the environment that has it")
        raise JobError(f"{argv[0]} is not on PATH; {hint}.") from error
