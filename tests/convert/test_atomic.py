import errno
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest

from jaxdecode.convert import pipeline
from jaxdecode.convert.atomic import MARKER, atomic_directory
from jaxdecode.convert.open import open_source
from jaxdecode.convert.pipeline import convert, verify
from jaxdecode.errors import CheckpointError, DestinationExistsError, InputError, JaxdecodeError
from tests.golden.corpus import tiny_folder

QUIET = {"progress": False}
Usage = namedtuple("Usage", "total used free")


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_visible_until_the_end(tmp_path):
    dst = tmp_path / "a" / "b"
    with atomic_directory(dst) as work:
        (work / "f").write_text("x")
        assert not dst.exists()
        assert work.name.startswith(".")
    assert (dst / "f").read_text() == "x"
    assert names_in(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(error, tmp_path):
    with pytest.raises(error), atomic_directory(tmp_path / "x") as work:
        (work / "f").write_text("x")
        raise error
    assert names_in(tmp_path) == []


def test_the_old_directory_survives_a_failure(tmp_path):
    dst = tmp_path / "x"
    dst.mkdir()
    (dst / "manifest.json").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_directory(dst, overwrite=True):
        raise KeyboardInterrupt
    assert (dst / "manifest.json").read_text() == "old"
    with atomic_directory(dst, overwrite=True) as work:
        (work / "manifest.json").write_text("new")
        assert (dst / "manifest.json").read_text() == "old"
    assert (dst / "manifest.json").read_text() == "new"
    assert names_in(tmp_path) == ["x"]


def test_a_destination_that_appears_meanwhile_is_kept(tmp_path):
    dst = tmp_path / "x"
    with pytest.raises(DestinationExistsError), atomic_directory(dst):
        dst.mkdir()
    assert names_in(tmp_path) == ["x"]


def test_leftovers_are_cleaned_but_work_in_progress_is_not(tmp_path):
    dead = tmp_path / f".x{MARKER}dead"
    dead.mkdir()
    (dead / "f").write_text("x")
    replaced = tmp_path / ".x.jaxdecode-replaced-1"
    replaced.mkdir()
    (replaced / "manifest.json").write_text("old")
    with atomic_directory(tmp_path / "x", overwrite=True) as running:
        assert not dead.exists()
        # Killed between the two renames: the old one is put back.
        assert (tmp_path / "x" / "manifest.json").read_text() == "old"
        with atomic_directory(tmp_path / "x", overwrite=True):
            assert running.is_dir()


def test_leftovers_are_never_loadable(tmp_path):
    ours = convert(tiny_folder("llama"), tmp_path / "x", **QUIET)
    left = ours.rename(tmp_path / f".x{MARKER}1")
    with pytest.raises(CheckpointError, match="unfinished conversion"):
        open_source(left)


def test_free_space_is_checked_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 1000))
    with pytest.raises(CheckpointError, match=r"x: no space left.*needed and 1,000 are free"):
        convert(tiny_folder("llama"), tmp_path / "x", **QUIET)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up(code, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(code, "No space left on device")

    monkeypatch.setitem(pipeline._WRITERS, "safetensors", full)
    with pytest.raises(CheckpointError, match=r"x: no space left.*bytes are needed"):
        convert(tiny_folder("llama"), tmp_path / "x", to="safetensors", **QUIET)
    assert names_in(tmp_path) == []


def test_other_errors_of_the_system_keep_their_meaning(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        convert(tiny_folder("llama"), tmp_path / "file" / "x", **QUIET)


@pytest.mark.parametrize("to", ["orbax", "safetensors"])
def test_ctrl_c_during_conversion_leaves_nothing(to, tmp_path, monkeypatch):
    original = pipeline.cast
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(pipeline, "cast", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(tiny_folder("llama"), tmp_path / "x", to=to, **QUIET)
    assert names_in(tmp_path) == []


CHILD = """
import sys
from jaxdecode.convert import checkpoint, pipeline
import orbax.checkpoint
checkpoint._GROUP_BYTES = 4000   # many groups, so that a kill can fall between them
print("ready", flush=True)
while True:
    pipeline.convert(sys.argv[1], sys.argv[2], to=sys.argv[3], overwrite=True, progress=False)
    print("done", flush=True)
"""


def run_kills(tmp_path, rounds, to):
    """Kills a process that converts over and over, at times spread over one conversion."""
    dst = tmp_path / "x"
    half = 0
    for i in range(rounds):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, tiny_folder("llama"), dst, to],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout.readline() == "ready\n"
        if i % 3 == 0:
            assert child.stdout.readline() == "done\n"
        time.sleep(0.4 * (i + 1) / rounds)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        half += any(MARKER in name for name in names_in(tmp_path))
        for name in names_in(tmp_path):
            try:
                verify(tmp_path / name)
                assert MARKER not in name
            except JaxdecodeError:
                # The destination itself is whole or absent, never damaged.
                assert name != "x"
    assert half > 0, "no kill fell into a conversion; the test shows nothing"
    convert(tiny_folder("llama"), dst, to=to, overwrite=True, **QUIET)
    verify(dst)
    assert names_in(tmp_path) == ["x"]


def test_kill_9_leaves_no_loadable_half_checkpoint(tmp_path):
    run_kills(tmp_path, 4, "orbax")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["orbax", "safetensors"])
def test_kill_9_leaves_no_loadable_half_checkpoint_50_times(to, tmp_path):
    run_kills(tmp_path, 50, to)
