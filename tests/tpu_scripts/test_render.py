"""The job for xpk, SkyPilot and SLURM: what these programs are given."""

import shlex

import pytest
import yaml

from tests.tpu_scripts.conftest import POD, SHELLCHECK, SPOT

XPK = SPOT | {"xpk": {"cluster": "my-cluster"}, "install": {"extras": ["hub"]}}
GPUS = SPOT | {"slurm": {"nodes": 2, "gpus_per_node": 8, "time": "1-00:00:00", "account": "me"}}
# Options of `xpk workload create` 1.x, of which nothing else may be used.
OPTIONS = {
    *("--workload", "--cluster", "--project", "--zone", "--tpu-type", "--num-slices"),
    *("--base-docker-image", "--script-dir", "--max-restarts", "--command"),
}


def test_xpk(cloud):
    shown = cloud.tpu("xpk", XPK)
    done = cloud.run(["bash", "-euc", shown.stdout])
    assert done.returncode == 0, done.stderr
    ((tool, *words),) = cloud.calls()
    given = dict(word.split("=", 1) for word in words[2:])
    assert [tool, *words[:2]] == ["xpk", "workload", "create"] and given.keys() == OPTIONS
    assert given["--tpu-type"] == "v5litepod-8" and given["--max-restarts"] == "10"
    install, _, command = given["--command"].partition(" && ")
    assert install == "bash tpu_scripts/on_host.sh install tpu,hub"
    assert command == "bash tpu_scripts/on_host.sh exec --devices slice 'echo hello'"
    assert "xpk cluster create" in shown.stdout and " --spot\n" in shown.stdout


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (SPOT, "key 'xpk' is missing; add it"),
        (POD | {"xpk": {"cluster": "c"}}, "devices: host hides the other hosts"),
        (XPK | {"bucket": "gs://bucket"}, "set xpk.image"),
    ],
)
def test_what_xpk_cannot_do(cloud, job, message):
    done = cloud.tpu("xpk", job)
    assert done.returncode == 1 and message in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("job", "launch"),
    [
        (SPOT, "sky jobs launch -n my-job job.sky.yaml"),
        (SPOT | {"mode": "on_demand"}, "sky launch -c my-job job.sky.yaml"),
        (SPOT | {"mode": "queued"}, "sky launch -c my-job --retry-until-up job.sky.yaml"),
    ],
)
def test_sky(cloud, job, launch):
    shown = cloud.tpu("sky", job).stdout
    assert shown.splitlines()[0].endswith(f"&& {launch}")
    task = yaml.safe_load(shown)
    assert task["resources"] == {
        "infra": "gcp/us-west4/us-west4-a",
        "accelerators": "tpu-v5litepod-8",
        "accelerator_args": {"runtime_version": "v2-alpha-tpuv5-lite"},
        "use_spot": job["mode"] == "spot",
    }
    assert task["setup"] == "bash tpu_scripts/on_host.sh install tpu"
    assert shlex.split(task["run"])[-1] == "echo hello"
    cloud.run(["bash", "-c", f"cat >job.sky.yaml; {launch}; rm job.sky.yaml"], input=shown)
    assert [call[0] for call in cloud.calls()] == ["sky"]


def test_slurm(cloud):
    job = GPUS | {"bucket": "gs://bucket", "outputs": ["out"], "devices": "host"}
    script = cloud.tpu("slurm", job).stdout
    asked = {line.split(" ")[1] for line in script.splitlines() if line.startswith("#SBATCH")}
    assert asked == {
        *("--job-name=my-job", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8"),
        *("--time=1-00:00:00", "--account=me", "--requeue", "--open-mode=append"),
        "--output=runs/tpu/my-job/slurm-%j.log",
    }
    assert cloud.run(["sbatch"], input=script).returncode == 0
    assert cloud.run(["bash", "-c", script]).returncode == 0
    submitted, (tool, *words) = cloud.calls()
    assert submitted == ["sbatch"] and tool == "srun" and words[-1] == "echo hello"
    # A cluster has a common disk; nothing goes to a bucket.
    assert "gs://" not in script
    assert cloud.run([SHELLCHECK, "-"], input=script).stdout == ""


def test_slurm_needs_its_key(cloud):
    assert "key 'slurm' is missing; add it" in cloud.tpu("slurm", SPOT).stderr
