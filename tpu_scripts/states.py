"""In which state a slice is, from the words of the cloud."""

import enum

from tpu_scripts import gcloud
from tpu_scripts.job import Job
from tpu_scripts.shell import CallError, Shell


class State(enum.Enum):
    """What to do with a slice: make it, wait for it, use it, or remove it and begin again."""

    ABSENT = "absent"
    COMING = "coming"
    READY = "ready"
    LOST = "lost"


_LOST_NODES = {"PREEMPTED", "TERMINATED", "STOPPED", "UNKNOWN"}
_LOST_REQUESTS = {"SUSPENDED", "FAILED"}


def look(job: Job, shell: Shell) -> tuple[State, str]:
    """The state of the job's slice, and the word of the cloud for it."""
    if job.mode == "queued":
        word = _ask(shell, gcloud.describe_request(job))
        if word is None:
            return State.ABSENT, "absent"
        if word in _LOST_REQUESTS:
            return State.LOST, word
        if word != "ACTIVE":
            return State.COMING, word
    word = _ask(shell, gcloud.describe(job, "state"))
    if word is None:
        # A request that is active without its node has lost it.
        return (State.LOST if job.mode == "queued" else State.ABSENT), "absent"
    if word in _LOST_NODES:
        return State.LOST, word
    return (State.READY if word == "READY" else State.COMING), word


def _ask(shell: Shell, argv: list[str]) -> str | None:
    try:
        return shell.ask(argv)
    except CallError as error:
        if error.is_absent:
            return None
        raise
