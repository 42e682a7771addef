"""generate --out FOLDER: the same results whoever makes them, in however many attempts."""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxdecode
from jaxdecode import api, many
from tests.cli.conftest import TINY
from tests.dist.ports import free_address

ROOT = Path(__file__).parents[2]
SCRIPT = "import sys; from jaxdecode.cli.main import main; sys.exit(main())"
LAW = ("--max-new-tokens", 6, "--temperature", 1, "--batch-size", 2)


@pytest.fixture
def prompts(jsonl):
    chance = random.Random(0)
    lines = [{"tokens": [chance.randrange(96) for _ in range(1 + i % 5)]} for i in range(11)]
    lines[4]["seed"] = 7
    lines[9] = lines[2]  # equal prompts with equal seeds give equal rows, wherever they are
    return jsonl(*lines)


@pytest.fixture
def generate(cli, checkpoint, prompts):
    def run(*args):
        return cli("generate", "--model", checkpoint, "--prompts", prompts, *LAW, *args)

    return run


def read(path):
    """Results without what the clock says."""
    records = [json.loads(line) for line in Path(path).read_text().splitlines()]
    for record in records:
        for name in ("seconds", "tokens_per_second"):
            del record["stats"][name]
    return records


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def no_load(monkeypatch):
    def load(*args, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(api, "load", load)


def test_one_process_fills_a_folder(generate, tmp_path):
    out = tmp_path / "out"
    done = generate("--out", f"{out}/")
    assert done.code == 0 and done.out == "" and names(out) == ["job.json", "results.jsonl"]
    assert "11 prompts and 66 tokens" in done.err and f"complete: {out}/results.jsonl" in done.err
    records = read(out / "results.jsonl")
    assert [record["index"] for record in records] == list(range(11))
    assert records[2]["tokens"] == records[9]["tokens"]
    plain = generate("--json").records
    assert [r["tokens"] for r in records] == [r["tokens"] for r in plain]
    assert list(records[0]) == ["index", *plain[0]]


def test_processes_share_and_the_last_merges(generate, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    generate("--out", f"{whole}/", "--n", 2, "--logprobs")
    run = ("--out", f"{out}/", "--n", 2, "--logprobs", "--processes", 3, "--json", "--process-id")
    told = [json.loads(generate(*run, i).out) for i in (2, 0, 1)]
    assert [(x["process_id"], x["new_prompts"], x["missing_parts"]) for x in told] == [
        (2, 3, 8), (0, 4, 4), (1, 4, 0),
    ]  # fmt: skip
    assert [x["results"] for x in told] == [None, None, str(out / "results.jsonl")]
    assert read(out / "results.jsonl") == read(whole / "results.jsonl")
    lines = read(out / "results.jsonl")
    assert [(line["index"], line["sample"]) for line in lines[:3]] == [(0, 0), (0, 1), (1, 0)]
    assert len(lines) == 22 and "logprobs" in lines[0]


def test_parts_of_machines_without_a_common_disk_are_merged(generate, cli, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for i, folder in enumerate(folders):
        assert (
            "parts are not here yet"
            in generate("--out", f"{folder}/", "--processes", 2, "--process-id", i).err
        )
    early = cli("merge", folders[0])
    assert early.code == 2 and "lacks 3 of 6 parts (part-00001-of-00006.jsonl, " in early.err
    for part in folders[1].glob("part-*"):
        shutil.copy(part, folders[0])
    merged = cli("merge", folders[0], "--json")
    assert json.loads(merged.out) == {"results": f"{folders[0]}/results.jsonl", "num_lines": 11}
    generate("--out", f"{tmp_path / 'whole'}/")
    assert read(folders[0] / "results.jsonl") == read(tmp_path / "whole" / "results.jsonl")
    assert cli("merge", tmp_path).code == 2


def test_a_stopped_run_continues_with_other_processes(generate, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    generate("--out", f"{whole}/")
    real = many.decode

    def stops_at_sixth(*args, **options):
        yield from itertools.islice(real(*args, **options), 5)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(many, "decode", stops_at_sixth)
        assert generate("--out", f"{out}/").code == 130
    kept = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    single = sum(path.read_text().count("\n") for path in out.glob("rows-*"))
    assert len(kept) * 2 + single == 5 and single
    done = generate("--out", out, "--processes", 2, "--process-id", 1, "--json")
    assert 0 < json.loads(done.out)["new_prompts"] < 5
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert generate("--out", out, "--processes", 2, "--process-id", 0, "--batch-size", 3).code == 0
    assert read(out / "results.jsonl") == read(whole / "results.jsonl")


def test_a_complete_folder_costs_nothing_more(generate, tmp_path, request):
    out = tmp_path / "out"
    generate("--out", f"{out}/")
    before = (out / "results.jsonl").stat().st_mtime_ns
    request.getfixturevalue("no_load")
    again = generate("--out", out)
    assert again.code == 0 and "0 prompts and 0 tokens" in again.err
    assert (out / "results.jsonl").stat().st_mtime_ns == before


def test_other_code_is_refused(generate, tmp_path, monkeypatch):
    generate("--out", f"{tmp_path}/out/", "--processes", 2, "--process-id", 0)
    monkeypatch.setattr(jaxdecode, "__version__", "99")
    refused = generate("--out", f"{tmp_path}/out/")
    assert refused.code == 2 and 'and is now "99"' in refused.err


def test_other_options_or_files_are_refused(generate, cli, checkpoint, tmp_path):
    out = tmp_path / "out"
    generate("--out", f"{out}/", "--processes", 2, "--process-id", 0)
    for args, name in [
        (("--seed", 1), "seed was 0 and is now 1"),
        (("--method", "prompt_lookup"), 'method was "ar" and is now "prompt_lookup"'),
        (("--logprobs",), "logprobs was false and is now true"),
        (("--dtype", "float32"), 'dtype was "auto" and is now "float32"'),
    ]:
        refused = generate("--out", out, *args)
        assert refused.code == 2 and name in refused.err and refused.err.count("\n") == 1
    path = tmp_path / "prompts.jsonl"
    run = ("generate", "--prompts", path, *LAW, "--out", out)
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    assert cli(*run, "--model", moved).code == 0  # the same files elsewhere are the same model
    (out / "results.jsonl").unlink()
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    other = cli(*run, "--model", moved)
    assert other.code == 2 and 'model was "files ' in other.err
    path.write_text(path.read_text() + '{"tokens": [1]}\n')
    longer = generate("--out", out)
    assert longer.code == 2 and 'prompts was "file ' in longer.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("--out", "{new}/", "--processes", "2", "--process-id", "2"),
            "process id 2 is out of range",
        ),
        (("--out", "{new}/", "--processes", "0", "--process-id", "0"), "0 processes are too few"),
        (("--out", "{new}/", "--processes", "2"), "got 2 and None"),
        (("--out", "{new}/", "--process-id", "0"), "got None and 0"),
        (("--out", "{new}/", "--coordinator", "here"), "got None and None"),
        (("--out", "{new}/", "--join-timeout", "5"), "--join-timeout has nobody to wait for"),
        (("--out", "{new}/", "--join-timeout", "-1"), "--join-timeout=-1"),
        (("--out", "{new}/", "--overwrite"), "--overwrite replaces files"),
        (("--out", "{new}/", "--stream"), "--stream"),
        (("--out", "{new}/", "--top-p", "0"), "top_p=0"),
        (("--out", "{new}/", "--n", "0"), "--n 0"),
        (("--processes", "2", "--process-id", "0"), "--processes needs a folder"),
        (("--out", "{new}", "--process-id", "0"), "--process-id needs a folder"),
        (("--coordinator", "a:1"), "--coordinator needs a folder"),
        (("--join-timeout", "1"), "--join-timeout needs a folder"),
        (("--on-error", "stop"), "--on-error needs a folder"),
        (("--out", "{prompts}/"), "cannot be written"),
        (("--out", "{parent}"), "holds other things"),
    ],
)
def test_bad_input_is_named_before_a_model_is_loaded(
    generate, prompts, tmp_path, no_load, args, message
):
    places = {"new": tmp_path / "new", "prompts": prompts, "parent": tmp_path}
    done = generate(*(arg.format(**places) for arg in args))
    assert done.code == 2 and done.out == "" and not (tmp_path / "new").exists()
    assert done.err.startswith("error: ") and message in done.err and done.err.count("\n") == 1


def test_methods_that_cannot_let_rows_in_say_so(generate, tmp_path):
    done = generate("--out", f"{tmp_path}/out/", "--mesh", "data=1,model=1")
    assert done.code == 0 and "wait for their batch: the model lies on several" in done.err
    plain = generate("--json").records
    assert [r["tokens"] for r in read(tmp_path / "out" / "results.jsonl")] == [
        record["tokens"] for record in plain
    ]


def test_the_bar_tells_rates_and_the_time_left(generate, tmp_path):
    done = generate("--out", f"{tmp_path}/out/", "--progress")
    assert "11/11" in done.err and "rows/s" in done.err and "tokens/s" in done.err


def test_a_folder_takes_a_file_of_prompts(cli, checkpoint, tmp_path, no_load):
    for given in (("--prompt", "a"), ("--message", "a")):
        done = cli("generate", "--model", checkpoint, *given, "--out", f"{tmp_path}/x/")
        assert done.code == 2 and "is a folder; that takes --prompts FILE" in done.err
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    done = cli("generate", "--model", checkpoint, "--prompts", empty, "--out", f"{tmp_path}/x/")
    assert done.code == 2 and "there are no prompts" in done.err and not (tmp_path / "x").exists()


@pytest.fixture
def environment(tmp_path):
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION")
    }
    return kept | {"JAXDECODE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}


@pytest.fixture
def start(environment, tmp_path):
    """Starts one of two processes of a run over the prompts that the test has written."""
    started, prompts = [], tmp_path / "prompts.jsonl"

    def run(out, process_id, *args) -> subprocess.Popen:
        place = ("--processes", 2, "--process-id", process_id)
        command = ("generate", "--model", TINY, "--prompts", prompts, *LAW, "--out", f"{out}/")
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, *map(str, (*command, *place, *args))],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_one_of_two_ends_with_an_error_in_time(start, prompts, tmp_path):
    begin = time.monotonic()
    alone = start(tmp_path / "out", 0, "--coordinator", free_address(), "--join-timeout", 1)
    _, err = alone.communicate(timeout=60)
    assert time.monotonic() - begin < 40 and alone.returncode == 1
    assert "error: 1 of 2 processes joined in time (1 s); missing: process 1." in err
    assert not (tmp_path / "out").exists()


def test_hosts_with_other_options_do_not_start(start, prompts, tmp_path):
    join = ("--coordinator", free_address(), "--join-timeout", 60)
    both = [start(tmp_path / "out", i, *join, "--seed", i) for i in (0, 1)]
    for process in both:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1 and not (tmp_path / "out").exists()
        assert "error: --seed differs: 0 on process 0 on " in err and ", 1 on process 1 on" in err


def odd_parts(out) -> set[str]:
    """What process 1 of 2 has written."""
    found = [path.name for path in out.glob("part-*")] if out.exists() else []
    return {name for name in found if int(name[5:10]) % 2}


def kill_in_the_middle(process, out, delay: float) -> None:
    """Kills process 1 some time after it has written another part."""
    before = odd_parts(out)
    while process.poll() is None and odd_parts(out) == before:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()


# Parts of a few milliseconds each, so that a kill finds work under way.
SMALL = (*LAW, "--batch-size", 1, "--max-new-tokens", 50)


@pytest.fixture
def tiny(cli, jsonl):
    """The command of a run of 80 small parts."""
    prompts = jsonl(*({"tokens": [i]} for i in range(80)))
    return lambda *args: cli("generate", "--model", TINY, "--prompts", prompts, *SMALL, *args)


def num_kept(folder):
    """Rows that are there by now; a part replaces its journal while they are counted."""
    count = 0
    for path in (*folder.glob("rows-*"), *folder.glob("part-*")):
        with contextlib.suppress(FileNotFoundError):
            count += len(path.read_text().splitlines())
    return count


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments_lose_and_repeat_no_row(tiny, start, tmp_path, num_kills):
    whole, out, chance = tmp_path / "whole", tmp_path / "out", random.Random(num_kills)
    refilled = ("--batch-size", 8)
    tiny("--out", f"{whole}/", *refilled)

    for _ in range(num_kills):
        running = start(out, 0, *SMALL, *refilled, "--processes", 1)
        before = num_kept(out)
        while running.poll() is None and num_kept(out) <= before:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.02))
        running.send_signal(signal.SIGKILL)
        running.communicate()
        if (out / "results.jsonl").exists():
            break
    assert tiny("--out", out).code == 0
    check_complete(out, whole)


def check_complete(out, whole):
    assert names(out) == ["job.json", "results.jsonl"]
    found = read(out / "results.jsonl")
    assert [record["index"] for record in found] == list(range(80))
    assert found == read(whole / "results.jsonl")


def test_kill_9_and_restart(tiny, start, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    tiny("--out", f"{whole}/")
    killed = start(out, 1, *SMALL)
    kill_in_the_middle(killed, out, 0.0)
    assert killed.returncode == -signal.SIGKILL and 0 < len(odd_parts(out)) < 40
    kept = len(odd_parts(out))
    again = tiny("--out", out, "--processes", 2, "--process-id", 1)
    assert f"{40 - kept} prompts and" in again.err
    assert tiny("--out", out, "--processes", 2, "--process-id", 0).code == 0
    check_complete(out, whole)


@pytest.mark.slow
def test_many_kills_beside_a_process_that_lives(tiny, start, tmp_path):
    whole, out, chance = tmp_path / "whole", tmp_path / "out", random.Random(0)
    tiny("--out", f"{whole}/")
    join = ("--coordinator", free_address(), "--join-timeout", 60)
    other, killed = [start(out, i, *SMALL, *join) for i in (0, 1)]
    for _ in range(10):
        kill_in_the_middle(killed, out, chance.uniform(0, 0.05))
        assert killed.returncode == -signal.SIGKILL and 0 < len(odd_parts(out)) < 40
        # Alone: the processes meet only to compare what they were asked to do.
        killed = start(out, 1, *SMALL)
    for process in (other, killed):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    check_complete(out, whole)
