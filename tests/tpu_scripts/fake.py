"""Stands for gcloud, xpk, sky, sbatch, srun and jaxdecode: writes down calls, and plays a cloud.

The folder $FAKE holds calls.jsonl (what was called), plan.json (what the cloud answers next, by
topic), and hosts/ and bucket/, which stand for the disks of the slice and for the bucket.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

FAKE = Path(os.environ["FAKE"])
# Flags that version 528 of gcloud has for these commands, of which nothing else may be used.
COMMON = {"project", "zone", "quiet", "format"}
FLAGS = {
    "compute tpus tpu-vm create": {"accelerator-type", "version", "spot", "internal-ips"},
    "compute tpus tpu-vm delete": set(),
    "compute tpus tpu-vm describe": set(),
    "compute tpus tpu-vm ssh": {"worker", "command", "output-directory", "internal-ip"},
    "compute tpus tpu-vm scp": {"worker", "recurse", "internal-ip"},
    "compute tpus queued-resources create": {
        *("node-id", "accelerator-type", "runtime-version", "spot", "valid-until-duration"),
    },
    "compute tpus queued-resources delete": {"force"},
    "compute tpus queued-resources describe": set(),
    "storage rsync": {"recursive", "exclude"},
    "storage ls": set(),
}


def next_answer(topic, default):
    """The next answer of the plan on a topic; the last one stays."""
    path = FAKE / "plan.json"
    plan = json.loads(path.read_text())
    answers = plan.get(topic, [])
    if len(answers) > 1:
        plan[topic] = answers[1:]
        path.write_text(json.dumps(plan))
    return answers[0] if answers else default


def fail(text, code=1):
    print(text, file=sys.stderr)
    sys.exit(code)


def main(tool, argv):
    with (FAKE / "calls.jsonl").open("a") as file:
        # One write, so that calls of several hosts do not mix.
        file.write(json.dumps([tool, *argv]) + "\n")
    if tool == "gcloud":
        words = [word for word in argv if not word.startswith("--")]
        given = dict(word[2:].partition("=")[::2] for word in argv if word.startswith("--"))
        command = next((name for name in FLAGS if " ".join(words).startswith(name)), None)
        unknown = given.keys() - COMMON - FLAGS.get(command, set())
        if command is None or unknown:
            fail(f"ERROR: unrecognized arguments: {command} {sorted(unknown)}", 2)
        rest = words[len(command.split()) :]
        globals()[command.split()[-1]](rest, given, "queued" in command)


def create(rest, given, queued):
    problem = next_answer("create", None)
    if problem:
        fail(f"ERROR: (gcloud.compute.tpus.tpu-vm.create) {problem}")
    for host in range(next_answer("disks", next_answer("hosts", 1))):
        (FAKE / "hosts" / str(host)).mkdir(parents=True)


def delete(rest, given, queued):
    if next_answer("delete", None) == "absent":
        fail("ERROR: (gcloud.compute.tpus.tpu-vm.delete) NOT_FOUND: Resource was not found.")
    shutil.rmtree(FAKE / "hosts", ignore_errors=True)


def describe(rest, given, queued):
    fields = given["format"].removeprefix("value(").removesuffix(")")
    hosts = next_answer("hosts", 1)
    if fields == "networkEndpoints.len()":
        print(hosts)
    elif fields == "health,networkEndpoints.len()":
        print(f"HEALTHY\t{hosts}")
    else:
        state = next_answer("request" if queued else "state", "ACTIVE" if queued else "READY")
        if state == "absent":
            fail("ERROR: (gcloud) NOT_FOUND: Resource 'projects/p/nodes/n' was not found.")
        print(state)


def ssh(rest, given, queued):
    homes = sorted((FAKE / "hosts").glob("*"), key=lambda path: int(path.name))
    code, logs = 0, given.get("output-directory")
    planned = next_answer("run", "real") if "on_host.sh run" in given["command"] else "real"
    if "preflight" in given["command"]:
        planned = next_answer("preflight", 0)
    for home in homes or [Path(str(i)) for i in range(next_answer("hosts", 1))]:
        if planned == "real" and home.is_dir():
            done = subprocess.run(
                ["bash", "-c", given["command"]], cwd=home, capture_output=True, text=True
            )
            said, result = done.stdout + done.stderr, done.returncode
        else:
            result = planned if isinstance(planned, int) else 0
            said = "" if result == 255 else f"something\nhost w-{home.name}: exit code {result}\n"
        if logs is None:
            print(said, end="")
        else:
            (Path(logs) / f"{home.name}.log").write_text(said)
        code = code or result
    sys.exit(code)


def scp(rest, given, queued):
    *sources, target = rest
    for home in (FAKE / "hosts").glob("*"):
        if ":" in target and given["worker"] in ("all", home.name):
            for source in sources:
                shutil.copy(source, home / target.partition(":")[2])


def rsync(rest, given, queued):
    source, target = (
        FAKE / "bucket" / path.removeprefix("gs://") if path.startswith("gs://") else Path(path)
        for path in rest
    )
    if source.exists():
        shutil.copytree(source, target, dirs_exist_ok=True)


def ls(rest, given, queued):
    if not (FAKE / "bucket" / rest[0].removeprefix("gs://")).exists():
        fail("ERROR: (gcloud.storage.ls) One or more URLs matched no objects.")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
