"""Rows that end before their part does: none is lost, and none is there twice."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxdecode import jobs
from jaxdecode.errors import JaxdecodeError
from jaxdecode.journal import Journal

NUM_ROWS = 150
# Makes the rows that are missing, in random order and with two lines each.
WORKER = """
import random, sys
from pathlib import Path
from jaxdecode import jobs
from jaxdecode.journal import Journal
job = jobs.begin(Path(sys.argv[1]), {}, num_rows=150, batch_rows=8, lines_per_row=2)
journal, waiting = Journal(job), []
print("ready", flush=True)
for part in jobs.to_do(job, 0, 1):
    waiting += journal.begin(part)
    random.shuffle(waiting)
    while len(waiting) > 20:
        row = waiting.pop()
        journal.add(row, [f'{{"row": {row}, "x": "{"x" * 9000}", "i": {i}}}' for i in (0, 1)])
for row in waiting:
    journal.add(row, [f'{{"row": {row}, "x": "{"x" * 9000}", "i": {i}}}' for i in (0, 1)])
jobs.merge(job)
"""
EXPECTED = "".join(
    f'{{"row": {row}, "x": "{"x" * 9000}", "i": {i}}}\n' for row in range(NUM_ROWS) for i in (0, 1)
)


def begin(folder, num_rows=10, lines_per_row=1):
    return jobs.begin(folder, {}, num_rows=num_rows, batch_rows=4, lines_per_row=lines_per_row)


def line(row):
    return [f'{{"row": {row}}}']


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_rows_in_any_order_become_parts_in_order(tmp_path):
    job = begin(tmp_path)
    journal = Journal(job)
    assert [list(journal.begin(part)) for part in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for row in (9, 3, 5, 1, 0, 2):
        journal.add(row, line(row))
    assert job.part(0).read_text() == "".join(f'{{"row": {i}}}\n' for i in range(4))
    assert not job.journals(0) and len(job.journals(1)) == 1 and jobs.missing(job) == [1, 2]
    again = Journal(job)
    assert [sorted(again.begin(part)) for part in (1, 2)] == [[4, 6, 7], [8]]
    for row in (8, 7, 6, 4):
        again.add(row, line(row))
    assert jobs.merge(job) and names(tmp_path) == ["job.json", "results.jsonl"]
    assert job.results.read_text() == "".join(f'{{"row": {i}}}\n' for i in range(10))


def test_what_a_kill_cut_short_is_made_again(tmp_path):
    job = begin(tmp_path, lines_per_row=2)
    torn = [
        b'1\t{"a": 1}\t{"b": 1}\n2\t{"a": 2}\t{"b"',
        b'0\t{"a": 0}\t{"b": 0}',
        b'3\t{"a": 3}\n',
        b"\0\0\0\0\n",
        b'9\t{"a": 9}\t{"b": 9}\n',
        b'x\t{"a": 9}\t{"b": 9}\n\xff\n\n',
    ]
    for i, content in enumerate(torn):
        job.journal(0, str(i)).write_bytes(content)
    journal = Journal(job)
    assert sorted(journal.begin(0)) == [0, 2, 3]
    for row in (0, 2, 3):
        journal.add(row, [f'{{"a": {row}}}', f'{{"b": {row}}}'])
    wanted = "".join(f'{{"a": {row}}}\n{{"b": {row}}}\n' for row in range(4))
    assert job.part(0).read_text() == wanted and not job.journals(0)


def test_a_part_whose_rows_are_all_there_is_written_at_once(tmp_path):
    job = begin(tmp_path)
    job.journal(2, "a").write_text('8\t{"row": 8}\n9\t{"row": 9}\n8\t{"row": 8}\n')
    assert not Journal(job).begin(2)
    assert job.part(2).read_text() == '{"row": 8}\n{"row": 9}\n'


def test_rows_that_vanish_are_named(tmp_path):
    job = begin(tmp_path)
    journal = Journal(job)
    journal.begin(2)
    journal.add(8, line(8))
    job.journals(2)[0].unlink()
    with pytest.raises(JaxdecodeError, match="lost row 8; run the same command again"):
        journal.add(9, line(9))
    assert not job.part(2).exists()


@pytest.mark.parametrize("num_kills", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_at_any_moment(tmp_path, num_kills):
    chance, folder, finished = random.Random(num_kills), tmp_path / "0", 0
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}

    def start(folder):
        command = [sys.executable, "-c", WORKER, str(folder)]
        started = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert started.stdout is not None and started.stdout.readline() == "ready\n"
        return started

    for _ in range(num_kills):
        running = start(folder)
        time.sleep(chance.uniform(0, 0.03))
        running.send_signal(signal.SIGKILL)
        running.communicate()
        if (folder / "results.jsonl").exists():
            assert (folder / "results.jsonl").read_text() == EXPECTED
            finished += 1
            folder = tmp_path / str(finished)
    _, err = start(folder).communicate(timeout=60)
    assert err == "" and (folder / "results.jsonl").read_text() == EXPECTED
    assert names(folder) == ["job.json", "results.jsonl"]
