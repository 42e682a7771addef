"""`tpu resume`: runs the job to its end, however often the slice is taken away."""

import time

from tpu_scripts import gcloud, verbs
from tpu_scripts.job import Job, JobError
from tpu_scripts.shell import CallError, Shell, note
from tpu_scripts.states import State, look

# What ssh and gcloud answer when the connection is the problem, and how often it may be.
_CONNECTION, _MAX_RECONNECTS = 255, 5


def resume(job: Job, shell: Shell, poll: float, restarts: int) -> None:
    """Makes, installs, checks and runs until the command has ended well.

    Commands of jaxdecode go on where they were, if their outputs are still there: that takes a
    bucket, since the disks of a lost slice are lost.

    Args:
        job: the job.
        shell: runs the calls.
        poll: seconds between looks at the cloud.
        restarts: how often a lost slice is made again.

    Raises:
        JobError: the command failed on a healthy slice, or the slice was lost too often.
    """
    if job.outputs and job.bucket is None:
        note("without a bucket nothing survives a lost slice: the command would begin anew")
    if shell.dry_run:
        _show(job, shell, poll)
        return
    lost = reconnects = 0
    fresh = False
    while True:
        state, word = look(job, shell)
        if state is State.READY:
            try:
                verbs.bootstrap(job, shell)
                # On an older slice the command may be at work, and has the chips.
                if fresh:
                    verbs.preflight(job, shell)
                fresh = False
                verbs.run(job, shell)
            except CallError as error:
                reconnects = _after_failure(job, shell, error, poll, reconnects)
                continue
            return
        if state is State.COMING:
            note(f"{job.name} is {word}; looking again in {poll:g} s")
            time.sleep(poll)
            continue
        if state is State.LOST:
            lost, reconnects = lost + 1, 0
            if lost > restarts:
                raise JobError(
                    f"{job.name} is {word} and was made again {restarts} times; `tpu resume "
                    "--restarts N` allows more. What was done is kept."
                )
            note(f"{job.name} is {word}: removing it and making it again ({lost} of {restarts})")
            verbs.delete(job, shell)
        _create(job, shell, poll)
        fresh = True


def _create(job: Job, shell: Shell, poll: float) -> None:
    try:
        shell.call(gcloud.create(job))
    except CallError as error:
        if not error.lacks_capacity:
            raise
        note(f"no capacity now; trying again in {poll:g} s, until you press Ctrl-C")
        time.sleep(poll)


def _after_failure(job: Job, shell: Shell, error: CallError, poll: float, reconnects: int) -> int:
    """Whether to go on after a failed run: how many reconnects in a row there were.

    Raises:
        CallError: the slice is healthy, so it was the command.
    """
    # The cloud says so only some time after the hosts are gone.
    time.sleep(poll)
    state, word = look(job, shell)
    if state is not State.READY:
        note(f"the run was cut off: {job.name} is {word}")
        return 0
    if error.code != _CONNECTION or reconnects >= _MAX_RECONNECTS:
        raise error
    note("the connection was lost; the command goes on there, connecting again")
    return reconnects + 1


def _show(job: Job, shell: Shell, poll: float) -> None:
    """The calls after one loss."""
    shell.paste("# On a slice that is PREEMPTED, TERMINATED or SUSPENDED; else it is left out:")
    verbs.delete(job, shell)
    shell.paste("# On a slice that is not there:")
    verbs.create(job, shell, poll)
    shell.paste(
        "# Always (the preflight on a new slice); commands of jaxdecode go on where they were:"
    )
    verbs.bootstrap(job, shell)
    verbs.preflight(job, shell)
    verbs.run(job, shell)
