"""Folders of results: what is there is whole, once, and in order, however often a run is killed."""

import concurrent.futures
import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxdecode import jobs
from jaxdecode.errors import InputError, JaxdecodeError

SETTINGS = {"seed": 0, "stop": ("a", "b"), "temperature": 0.5}
# Process ID of N of a job of 60 parts; says when it begins, and each line names its row.
WORKER = """
import sys
from pathlib import Path
from jaxdecode import jobs
folder, own, num = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
job = jobs.begin(folder, {}, num_rows=119, batch_rows=2, lines_per_row=2)
with jobs.claim(job, own):
    print("claimed", flush=True)
    for number in jobs.to_do(job, own, num):
        rows = job.rows(number)
        jobs.write(job, number, (f"{row} {'x' * 5000} {i}" for row in rows for i in (0, 1)))
    jobs.merge(job)
"""
EXPECTED = "".join(f"{row} {'x' * 5000} {i}\n" for row in range(119) for i in (0, 1))


def worker(folder, own=0, num=1) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", WORKER, str(folder), str(own), str(num)]
    started = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None and started.stdout.readline() == "ready\n"
    return started


def kill(started: subprocess.Popen) -> None:
    started.send_signal(signal.SIGKILL)
    started.communicate()


def begin(folder, settings=SETTINGS, **changes):
    sizes = {"num_rows": 10, "batch_rows": 3} | changes
    return jobs.begin(folder, settings, **sizes)


def fill(job, numbers=None):
    for number in range(job.num_parts) if numbers is None else numbers:
        jobs.write(job, number, (json.dumps(row) for row in job.rows(number)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_parts_appear_and_become_one_file(tmp_path):
    job = begin(tmp_path / "new" / "out")
    assert job.num_parts == 4 and [list(job.rows(i)) for i in (0, 3)] == [[0, 1, 2], [9]]
    fill(job, [3, 0, 2])
    assert names(job.folder) == ["job.json", *(f"part-0000{i}-of-00004.jsonl" for i in (0, 2, 3))]
    assert not jobs.merge(job) and jobs.missing(job) == [1]
    fill(begin(job.folder), [1])
    assert jobs.merge(job) and jobs.merge(job) and jobs.missing(job) == []
    assert [json.loads(line) for line in job.results.read_text().splitlines()] == list(range(10))
    assert names(job.folder) == ["job.json", "results.jsonl"]


def test_shares_cover_every_part_once(tmp_path):
    job = begin(tmp_path, num_rows=100)
    for num in (1, 2, 3, 7, 50):
        shares = [jobs.to_do(job, i, num) for i in range(num)]
        assert sorted(itertools.chain(*shares)) == list(range(job.num_parts))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    fill(job, [0, 5])
    assert jobs.to_do(job, 1, 2) == [i for i in range(1, 34, 2) if i != 5]


@pytest.mark.parametrize(
    ("num_rows", "batch_rows", "num_processes", "rows_per_part"),
    [
        (10, 3, 1, 3),
        (10, 8, 4, 3),
        (2, 8, 4, 1),
        (8192, 8, 2, 8),
        (8193, 8, 2, 16),
        (10**6, 8, 4, 984),
    ],
)
def test_sizes_of_parts(tmp_path, num_rows, batch_rows, num_processes, rows_per_part):
    job = begin(tmp_path, num_rows=num_rows, batch_rows=batch_rows, num_processes=num_processes)
    assert job.rows_per_part == rows_per_part
    assert job.num_parts <= 1024


def test_the_division_stays_when_batch_and_processes_change(tmp_path):
    job = begin(tmp_path, num_processes=2)
    assert begin(tmp_path, batch_rows=1, num_processes=5) == job


def test_other_settings_are_named(tmp_path):
    job = begin(tmp_path / "out")
    with pytest.raises(InputError) as caught:
        begin(job.folder, SETTINGS | {"seed": 1, "stop": ("a",), "new": "x"})
    told = str(caught.value)
    for part in ("seed was 0 and is now 1", 'stop was ["a", "b"] and is now ["a"]', "new was null"):
        assert part in told
    assert "temperature" not in told
    assert begin(job.folder, SETTINGS | {"stop": ["a", "b"]}) == job


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other things \(notes.txt\)"):
        begin(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        begin(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="cannot be written"):
        begin(tmp_path / "notes.txt" / "below")
    with pytest.raises(InputError, match="has no job.json"):
        jobs.read(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "other"}', '{"format": "jaxdecode-job-1"}']
)
def test_a_damaged_job_file(tmp_path, text):
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(InputError, match="job.json is damaged"):
        begin(tmp_path)


def test_many_begin_at_once_and_one_wins(tmp_path):
    def one(seed):
        try:
            return begin(tmp_path / "out", {"seed": seed}).settings["seed"]
        except InputError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, [0, 1] * 20))
    (winner,) = {seed for seed in found if isinstance(seed, int)}
    assert found.count(winner) == 20 and all("begun differently" in x for x in found if x != winner)
    assert names(tmp_path / "out") == ["job.json"]


def test_one_that_comes_late_finds_parts_already(tmp_path, monkeypatch):
    real = jobs._check_new

    def meanwhile(folder):
        monkeypatch.setattr(jobs, "_check_new", real)
        fill(begin(folder), [0])
        real(folder)

    monkeypatch.setattr(jobs, "_check_new", meanwhile)
    assert jobs.missing(begin(tmp_path)) == [1, 2, 3]


def test_file_systems_without_links(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert begin(tmp_path) == begin(tmp_path)
    assert names(tmp_path) == ["job.json"]


def test_a_part_that_lost_lines_is_not_merged(tmp_path):
    job = begin(tmp_path)
    fill(job)
    job.part(1).write_text("3\n4\n")
    with pytest.raises(InputError, match="part-00001-of-00004.jsonl has 2 lines instead of 3"):
        jobs.merge(job)
    assert not job.results.exists() and len(names(tmp_path)) == 5


def test_a_merge_that_another_process_finished_first(tmp_path, monkeypatch):
    job = begin(tmp_path)
    fill(job)
    real = jobs._check_part

    def meanwhile(job, number):
        monkeypatch.setattr(jobs, "_check_part", real)
        assert jobs.merge(job)
        real(job, number)

    monkeypatch.setattr(jobs, "_check_part", meanwhile)
    assert jobs.merge(job)
    assert names(tmp_path) == ["job.json", "results.jsonl"]
    assert job.results.read_text().count("\n") == 10


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    job = begin(tmp_path)
    fill(job, [0, 1, 2])

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(JaxdecodeError, match="no space is left"):
            fill(job, [3])
    assert names(tmp_path) == ["job.json", *(f"part-0000{i}-of-00004.jsonl" for i in range(3))]
    fill(job, [3])
    assert jobs.merge(job)


def test_a_second_process_of_the_same_id_is_refused(tmp_path):
    first = worker(tmp_path / "out")
    assert first.stdout is not None and first.stdout.readline() == "claimed\n"
    first.send_signal(signal.SIGSTOP)
    second = worker(tmp_path / "out")
    _, err = second.communicate(timeout=30)
    assert second.returncode == 1 and f"process 0 of {tmp_path / 'out'} is running already" in err
    other = worker(tmp_path / "out", 1, 2)
    assert other.communicate(timeout=30)[1] == "" and other.returncode == 0
    kill(first)
    again = worker(tmp_path / "out")
    assert again.communicate(timeout=30)[1] == ""
    assert (tmp_path / "out" / "results.jsonl").read_text() == EXPECTED


@pytest.mark.parametrize("num_kills", [15, pytest.param(300, marks=pytest.mark.slow)])
def test_kills_at_any_moment_lose_and_repeat_nothing(tmp_path, num_kills):
    chance, folder, finished = random.Random(num_kills), tmp_path / "0", 0
    seconds = 0.04
    for _ in range(num_kills):
        num = chance.choice([1, 2, 3])
        started = worker(folder, chance.randrange(num), num)
        time.sleep(chance.uniform(0, seconds))
        kill(started)
        for part in folder.glob("part-*.jsonl"):
            first = int(part.name[5:10]) * 2
            rows = range(first, min(first + 2, 119))
            assert part.read_text() == "".join(
                EXPECTED.splitlines(True)[rows[0] * 2 : rows[-1] * 2 + 2]
            )
        results = folder / "results.jsonl"
        if results.exists():
            assert results.read_text() == EXPECTED
            finished += 1
            folder = tmp_path / str(finished)
    last = worker(folder)
    assert last.communicate(timeout=30)[1] == ""
    assert (folder / "results.jsonl").read_text() == EXPECTED
    assert names(folder) == ["job.json", "results.jsonl"]
