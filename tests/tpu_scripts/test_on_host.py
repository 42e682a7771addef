"""on_host.sh, as a host runs it: the command's code, its log, its outputs in a bucket."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from jax._src.clusters import cloud_tpu_cluster

from jaxdecode.dist import hosts
from tests.tpu_scripts.conftest import ROOT, SHELLCHECK


@pytest.fixture
def host(cloud, tmp_path, monkeypatch):
    """Calls on_host.sh in a checkout of its own."""
    home = tmp_path / "home"
    (home / "tpu_scripts").mkdir(parents=True)
    shutil.copy(ROOT / "tpu_scripts" / "on_host.sh", home / "tpu_scripts")
    monkeypatch.chdir(home)
    return lambda *words: cloud.run(["bash", "tpu_scripts/on_host.sh", *words])


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def wait_for(condition):
    for _ in range(100):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def test_code_and_environment_of_the_command(host):
    done = host("exec", "--env", "A=b c", "--devices", "slice", 'echo "$A"; exit 5')
    assert (done.returncode, done.stdout) == (5, "b c\n")


def test_outputs_come_from_the_bucket_and_go_there(host, tmp_path):
    kept = tmp_path / "bucket" / "b" / "job" / "out"
    kept.mkdir(parents=True)
    (kept / "part-0").write_text("")
    options = ("--bucket", "gs://b/job", "--output", "out", "--output", "none")
    done = host("exec", *options, "ls out; touch out/part-1; exit 3")
    assert (done.returncode, done.stdout) == (3, "part-0\n")
    assert names(kept) == ["part-0", "part-1"]


def test_outputs_go_to_the_bucket_while_the_command_runs(host, tmp_path, monkeypatch):
    monkeypatch.setenv("KEEP_SECONDS", "0.1")
    kept = tmp_path / "bucket" / "b" / "out" / "part-0"
    wait = f"until [ -e {kept} ]; do sleep 0.05; done"
    done = host(
        "exec", "--bucket", "gs://b", "--output", "out", f"mkdir out; touch out/part-0; {wait}"
    )
    assert done.returncode == 0


def test_a_bucket_without_gcloud(host, tmp_path, monkeypatch):
    (tmp_path / "bin" / "gcloud").unlink()
    for tool in ("bash", "dirname", "realpath"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    done = host("exec", "--bucket", "gs://b", "--output", "out", "touch done")
    assert done.returncode == 1 and "gs://b needs it" in done.stderr and not Path("done").exists()


def test_a_signal_reaches_the_command_once_and_its_end_is_waited_for(host, tmp_path):
    save = "sleep 0.3; echo saved >>out/log; exit 4"
    text = f"trap '{save}' TERM; touch ready; while :; do sleep 0.05; done"
    Path("out").mkdir()
    words = ["bash", "tpu_scripts/on_host.sh", "exec", "--bucket", "gs://b", "--output", "out"]
    with subprocess.Popen([*words, text]) as process:
        wait_for(Path("ready").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 4
    assert (tmp_path / "bucket" / "b" / "out" / "log").read_text() == "saved\n"


def test_run_outlives_its_connection_and_is_found_again(host):
    text = "echo begun; touch begun; until [ -e go ]; do sleep 0.05; done; echo ended; exit 6"
    words = ["bash", "tpu_scripts/on_host.sh", "run", text]
    first = subprocess.Popen(words, start_new_session=True)
    wait_for(Path("begun").exists)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    other = host("run", "echo something else")
    assert other.returncode == 1 and "another command runs here" in other.stderr
    Path("begun").unlink()
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as again:
        # It must be back before the command ends: an ended one would be started anew.
        said = [again.stdout.readline().rstrip()]
        Path("go").touch()
        said += again.stdout.read().splitlines()
    assert again.returncode == 6 and said[-1].endswith("exit code 6")
    # It was not started a second time.
    assert said.count("begun") == 1 and "ended" in said and not Path("begun").exists()


def test_stop(host):
    assert "nothing runs" in host("stop").stdout
    words = ["bash", "tpu_scripts/on_host.sh", "run", "touch begun; sleep 100"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as running:
        wait_for(Path("begun").exists)
        assert host("stop").returncode == 0
        assert running.communicate(timeout=20)[0].splitlines()[-1].endswith("exit code 143")


@pytest.mark.parametrize(
    ("chips", "bounds"), [(["accel0"], "1,1,1"), ([f"vfio/{i}" for i in range(4)], "2,2,1")]
)
def test_devices_of_one_host(host, tmp_path, monkeypatch, chips, bounds):
    for name in [*chips, "vfio/vfio", "null"]:
        (tmp_path / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dev" / name).touch()
    monkeypatch.setenv("TPU_DEVICE_FOLDER", str(tmp_path / "dev"))
    shown = "echo $TPU_CHIPS_PER_PROCESS_BOUNDS $TPU_PROCESS_BOUNDS $TPU_VISIBLE_CHIPS"
    done = host("exec", "--devices", "host", shown)
    visible = ",".join(str(i) for i in range(len(chips)))
    assert done.stdout == f"{bounds} 1,1,1 {visible}\n"


def test_a_host_that_sees_its_own_chips_still_knows_its_place(host, tmp_path, monkeypatch):
    """JAX takes the place from the VM's metadata, which hiding the slice leaves as they are."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "accel0").touch()
    monkeypatch.setenv("TPU_DEVICE_FOLDER", str(tmp_path / "dev"))
    for line in host("exec", "--devices", "host", "env | grep TPU_").stdout.splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    hosts_of_slice = ",".join(f"name:{i}:127.0.0.1" for i in range(16))
    metadata = {
        "agent-worker-number": "3",
        "worker-network-endpoints": hosts_of_slice,
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-64'",
    }
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (metadata[key], 200))
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    # JAX sets it where there are no chips.
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    here = hosts.this_process(timeout=5)
    assert (here.process_id, here.num_processes) == (3, 16)


def test_devices_of_a_host_without_any(host, tmp_path, monkeypatch):
    monkeypatch.setenv("TPU_DEVICE_FOLDER", str(tmp_path / "bin"))
    done = host("exec", "--devices", "host", "echo")
    assert done.returncode == 1 and "there are 0 TPU chips" in done.stderr
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert host("exec", "--devices", "host", "echo $CUDA_VISIBLE_DEVICES").stdout == "3\n"


def test_install(host, cloud, monkeypatch):
    def send(text):
        Path("jaxdecode").mkdir(exist_ok=True)
        Path("jaxdecode/new.py").write_text(text)
        subprocess.run(["tar", "-czf", "source.tar.gz", "jaxdecode"], check=True)

    send("1")
    Path("jaxdecode/old.py").touch()
    done = host("install", "tpu,hub")
    assert done.returncode == 0 and "installed Version: 1" in done.stdout, done.stderr
    assert Path(".venv/pip").read_text().endswith("--editable .[tpu,hub]\n")
    # Files of another commit are gone.
    assert names("jaxdecode") == ["new.py"]
    assert "installed already" in host("install", "tpu,hub").stdout
    assert host("install", "tpu", "x.whl").returncode == 0
    assert Path(".venv/pip").read_text().endswith(" x.whl[tpu]\n")
    assert len(Path(".venv/pip").read_text().splitlines()) == 2
    with subprocess.Popen(["bash", "tpu_scripts/on_host.sh", "run", "touch begun; sleep 100"]):
        wait_for(Path("begun").exists)
        assert "installed already" in host("install", "tpu", "x.whl").stdout
        send("2")
        refused = host("install", "tpu", "x.whl")
        assert refused.returncode == 1 and "a command runs here, with other code" in refused.stderr
        host("stop")


def test_scripts_are_clean_and_short(cloud):
    scripts = [*ROOT.glob("tpu_scripts/*.sh"), *ROOT.glob("tests/tpu_scripts/*.sh")]
    done = cloud.run([SHELLCHECK, *map(str, scripts)])
    assert scripts and done.returncode == 0, done.stdout
    for path in ROOT.glob("tpu_scripts/*"):
        if path.is_file():
            assert len(path.read_text().splitlines()) <= 250, path


def test_unknown_words(host):
    assert "unknown action 'fly'" in host("fly").stderr
    assert "unknown option --x" in host("exec", "--x", "y", "true").stderr
