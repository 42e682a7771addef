"""`tpu VERB JOB`: its calls of gcloud, in order, and what it says when they fail."""

import pytest

from tests.tpu_scripts.conftest import INSIDE, POD, QUEUED, SPOT
from tpu_scripts import resume

BOOTSTRAP = ["vm ssh", "vm scp", "install"]
WHERE = ["--project=my-project", "--zone=us-west4-a"]
VM = ["gcloud", "compute", "tpus", "tpu-vm"]
QUOTA = "Quota limit 'TPUV5sPreemptibleLitepodServingPerProjectPerZone' has been exceeded. Limit: 0"
CAPACITY = 'There is no more capacity in the zone "us-west4-a"; you can try in another zone'


def test_calls_of_a_spot_slice(cloud):
    assert cloud.tpu("create", SPOT).returncode == 0
    kind = ["--accelerator-type=v5litepod-8", "--version=v2-alpha-tpuv5-lite", "--spot"]
    assert cloud.calls() == [[*VM, "create", "my-job", *WHERE, *kind]]
    assert cloud.tpu("delete", SPOT).returncode == 0
    assert cloud.calls() == [[*VM, "delete", "my-job", *WHERE, "--quiet"]]


def test_calls_of_a_queued_slice(cloud):
    cloud.plan(request=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    done = cloud.tpu("create", QUEUED)
    assert done.returncode == 0 and "WAITING_FOR_RESOURCES" in done.stderr
    first, *looks = cloud.calls()
    queue = ["gcloud", "compute", "tpus", "queued-resources"]
    where = ["--project=my-project", "--zone=us-central2-b"]
    assert first == [
        *(*queue, "create", "my-job", *where, "--node-id=my-job", "--accelerator-type=v4-8"),
        *("--runtime-version=tpu-ubuntu2204-base", "--spot", "--valid-until-duration=6h"),
    ]
    assert looks == [[*queue, "describe", "my-job", *where, "--format=value(state.state)"]] * 3
    cloud.tpu("delete", QUEUED)
    assert cloud.calls() == [[*queue, "delete", "my-job", *where, "--force", "--quiet"]]


def test_a_request_that_failed(cloud):
    cloud.plan(request=["ACCEPTED", "FAILED"])
    done = cloud.tpu("create", QUEUED)
    assert done.returncode == 1 and "the request my-job is FAILED" in done.stderr


@pytest.mark.parametrize("job", [SPOT, POD | {"bucket": "gs://bucket"}], ids=["host", "pod"])
def test_run_on_all_hosts(cloud, job):
    cloud.plan(hosts=[16 if job["accelerator"] == "v5e:8x8" else 1], run=[0])
    assert cloud.tpu("run", job).returncode == 0
    (call,) = cloud.calls()
    store = "--bucket gs://bucket/my-job --output out " if "bucket" in job else ""
    options = f"--devices {job.get('devices', 'slice')} {store}"
    command = f"cd jaxdecode && bash tpu_scripts/on_host.sh run {options}'echo hello'"
    logs = "--output-directory=runs/tpu/my-job/logs"
    all_hosts = [*WHERE, "--quiet", "--worker=all"]
    assert call == [*VM, "ssh", "my-job", *all_hosts, f"--command={command}", logs]


def test_the_exit_code_is_that_of_the_command_and_failing_hosts_are_named(cloud):
    cloud.plan(hosts=[16], run=[3])
    done = cloud.tpu("run", POD)
    assert done.returncode == 3
    assert "worker 10 ended with 3: something (runs/tpu/my-job/logs/10.log)" in done.stderr
    assert done.stderr.index("worker 2 ") < done.stderr.index("worker 10 ")
    assert len(list((cloud.folder / "runs/tpu/my-job/logs").glob("*.log"))) == 16


@pytest.mark.parametrize(
    ("problem", "advice"),
    [
        (QUOTA, "no quota left"),
        (CAPACITY, "`mode: queued`, which waits"),
        ("ALREADY_EXISTS: Resource 'my-job' already exists", "`tpu delete`"),
        ("PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", "roles/tpu.admin"),
        ("You do not currently have an active account selected.", "gcloud auth login"),
        ("INVALID_ARGUMENT: Cloud TPU got a bad accelerator", "accelerator-types list"),
    ],
)
def test_a_failed_create_comes_with_advice(cloud, problem, advice):
    cloud.plan(create=[problem])
    done = cloud.tpu("create", SPOT)
    assert done.returncode == 1 and problem in done.stderr
    assert advice in done.stderr.partition("advice: ")[2]


def test_delete_of_what_is_not_there(cloud):
    cloud.plan(delete=["absent"])
    done = cloud.tpu("delete", SPOT)
    assert done.returncode == 0 and "my-job was not there" in done.stderr


def test_status(cloud):
    cloud.plan(hosts=[16])
    line = "my-job: READY (v5litepod-64, us-west4-a, on_demand), HEALTHY, 16 hosts\n"
    assert cloud.tpu("status", POD).stdout == line
    cloud.plan(request=["ACTIVE"], state=["absent"])
    assert cloud.tpu("status", QUEUED).stdout.startswith("my-job: absent")


@pytest.mark.parametrize("hosts", [1, 16])
def test_resume_after_preemption(cloud, hosts):
    states = ["absent", "READY", "PREEMPTED", "PREEMPTED", "READY"]
    cloud.plan(hosts=[hosts], disks=[0], state=states, run=[255, 0])
    done = cloud.tpu("resume", SPOT | {"outputs": ["out"], "bucket": "gs://bucket"})
    assert done.returncode == 0, done.stderr
    assert "my-job is PREEMPTED: removing it and making it again (1 of 20)" in done.stderr
    # "exec" is the preflight.
    look, again = ["vm describe"], ["vm describe", *BOOTSTRAP, "exec", "run"]
    lost = ["vm describe", "vm delete", "vm create"]
    assert cloud.verbs() == [*look, "vm create", *again, *look, *lost, *again]


def test_resume_of_a_queued_slice_that_was_suspended(cloud):
    cloud.plan(request=["SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE"], run=[0])
    assert cloud.tpu("resume", QUEUED).returncode == 0
    lost = ["queue describe", "queue delete", "queue create", "queue describe"]
    ready = ["queue describe", "vm describe"]
    assert cloud.verbs() == [*lost, *ready, *BOOTSTRAP, "exec", "run"]


def test_resume_gives_up_on_a_command_that_fails(cloud):
    cloud.plan(run=[7])
    assert cloud.tpu("resume", SPOT).returncode == 7
    assert cloud.verbs() == ["vm describe", *BOOTSTRAP, "run", "vm describe"]


def test_resume_goes_back_after_a_lost_connection_but_not_for_ever(cloud, monkeypatch):
    cloud.plan(run=[255, 0])
    assert cloud.tpu("resume", SPOT).returncode == 0
    assert cloud.verbs().count("run") == 2
    cloud.plan(run=[255])
    monkeypatch.setattr(resume, "_MAX_RECONNECTS", 1)
    assert cloud.tpu("resume", SPOT).returncode == 255
    assert cloud.verbs().count("run") == 2


def test_resume_waits_for_capacity_but_not_for_quota(cloud):
    cloud.plan(state=["absent", "absent", "READY"], create=[CAPACITY, None], run=[0])
    done = cloud.tpu("resume", SPOT)
    assert done.returncode == 0 and "no capacity now" in done.stderr
    cloud.plan(state=["absent"], create=[QUOTA])
    assert cloud.tpu("resume", SPOT).returncode == 1


def test_resume_runs_nothing_on_a_slice_that_fails_the_preflight(cloud):
    cloud.plan(state=["absent", "READY"], preflight=[1])
    assert cloud.tpu("resume", SPOT).returncode == 1
    assert "run" not in cloud.verbs()


def test_resume_counts_restarts(cloud):
    cloud.plan(state=["PREEMPTED"])
    done = cloud.tpu("resume", SPOT, "--restarts", "2")
    assert done.returncode == 1 and "was made again 2 times" in done.stderr
    assert cloud.verbs().count("vm create") == 2


def test_the_whole_way_with_real_hosts(cloud):
    """The host is a folder, the bucket too; the slice is lost after a part."""
    job = SPOT | {
        "command": 'touch out/part-$(ls out | wc -l) && [ "$(ls out | wc -l)" -ge "$WANTED" ]',
        "env": {"WANTED": "3"},
        "files": ["data/prompts.jsonl", "out/part-0"],
        "outputs": ["out"],
        "bucket": "gs://bucket",
    }
    for name in job["files"]:
        (cloud.folder / name).parent.mkdir(exist_ok=True)
        (cloud.folder / name).write_text("{}")
    cloud.plan(state=["absent", "READY", "TERMINATED", "TERMINATED", "READY"])
    done = cloud.tpu("resume", job)
    assert done.returncode == 0, done.stderr
    home = cloud.fake / "hosts" / "0" / "jaxdecode"
    assert (home / "data/prompts.jsonl").exists() and (home / "constraints").is_dir()
    pip = (home / ".venv" / "pip").read_text().split()
    assert pip[-2:] == ["--editable", ".[tpu]"] and "constraints/py312.txt" in pip
    assert cloud.tpu("fetch", job).returncode == 0
    results = cloud.folder / "runs/tpu/my-job/results/out"
    assert sorted(path.name for path in results.iterdir()) == ["part-0", "part-1", "part-2"]


def test_fetch_merges_the_parts_of_a_job(cloud):
    (cloud.folder / "runs/tpu/my-job/results/out").mkdir(parents=True)
    (cloud.folder / "runs/tpu/my-job/results/out/job.json").write_text("{}")
    cloud.plan(hosts=[3])
    assert cloud.tpu("fetch", POD).returncode == 0
    count, *copies, merge = cloud.calls()
    assert count[-1] == "--format=value(networkEndpoints.len())"
    assert [call[-1] for call in copies] == [f"--worker={i}" for i in range(3)]
    assert merge == ["jaxdecode", "merge", "runs/tpu/my-job/results/out"]
    # One program over all hosts has its outputs on the first.
    assert cloud.tpu("fetch", POD | {"devices": "slice"}).returncode == 0
    assert [call[-1] for call in cloud.calls()[:-1]] == ["--worker=0"]


@pytest.mark.parametrize("job", [SPOT, INSIDE, QUEUED], ids=["spot", "inside", "queued"])
def test_a_dry_run_does_nothing_and_can_be_pasted(cloud, job):
    job = job | {"outputs": ["out"], "env": {"FLAGS": "--a='x y' $HOME"}, "files": ["my.jsonl"]}
    (cloud.folder / "my.jsonl").write_text("{}")
    plan = {"hosts": [2], "request": ["PROVISIONING", "ACTIVE"], "run": [0]}
    for verb in ("create", "bootstrap", "preflight", "run", "stop", "fetch", "delete"):
        # Hosts without a disk here: only what they are asked is of interest.
        cloud.plan(**plan, disks=[0])
        assert cloud.tpu(verb, job).returncode == 0
        made = cloud.calls()
        cloud.plan(**plan, disks=[0])
        shown = cloud.tpu(verb, job, "--dry-run")
        assert shown.returncode == 0 and cloud.calls() == [] and made
        pasted = cloud.run(["bash", "-euc", shown.stdout], cwd=cloud.fake)
        assert pasted.returncode == 0, pasted.stderr
        assert cloud.calls() == made


def test_words_arrive_on_the_hosts_as_they_were_written(cloud):
    words = ["two words", "$HOME", "a;b", "'", '"', "(c)"]
    job = SPOT | {"command": "printf '%s\\n' " + " ".join(f'"${{W{i}}}"' for i in range(6))}
    job["env"] = {f"W{i}": word for i, word in enumerate(words)}
    cloud.tpu("create", job)
    cloud.tpu("bootstrap", job)
    assert cloud.tpu("run", job).returncode == 0
    log = (cloud.folder / "runs/tpu/my-job/logs/0.log").read_text().splitlines()
    assert log[:-1] == words


def test_run_before_bootstrap(cloud):
    cloud.tpu("create", SPOT)
    done = cloud.tpu("run", SPOT)
    assert done.returncode == 1 and "worker 0 was cut off: " in done.stderr
    assert "cd: jaxdecode: No such file or directory" in done.stderr


def test_without_gcloud(cloud, monkeypatch):
    (cloud.fake / "bin" / "gcloud").unlink()
    monkeypatch.setenv("PATH", f"{cloud.fake / 'bin'}")
    done = cloud.tpu("status", SPOT)
    assert done.returncode == 1 and "gcloud is not on PATH; install the Google" in done.stderr
