"""`jaxdecode bench` as a command: tables, files, what is refused, going on after Ctrl-C."""

import json

import pytest

from jaxdecode.evals import bench

SUITE = [
    {"tokens": [3, 1, 4, 1, 5], "category": "news"},
    {"messages": [{"role": "user", "content": "ab"}], "category": "chat", "seed": 5},
    {"question_id": 81, "category": "writing", "turns": ["abab", "and now?"]},
    {"prompt": "ba", "category": "news"},
]


@pytest.fixture
def command(checkpoint, jsonl):
    run = ("bench", "--model", checkpoint, "--suite", jsonl(*SUITE), "--methods", "prompt_lookup")
    return (*run, "--max-new-tokens", 6, "--repeats", 1)


def test_tables(cli, command):
    done = cli(*command, "--batch-size", "1,3", "--temperature", "0,0.8")
    assert done.code == 0 and done.err == ""
    for title in ("batch 1, temperature 0,", "batch 3, temperature 0.8, 6 new tokens"):
        assert title in done.out
    lines = done.out.splitlines()
    for name in ("news", "chat", "mt_bench", "mixed", "overall"):
        assert [line for line in lines if line.split()[:2] == [name, "ar"]], name
    assert "speed-up" in done.out and "1.00x" in done.out and "differ" not in done.out
    assert lines[-1] == "prompt_lookup: 96 tokens of 16 rows compared with ar: equal"


def test_check_only_shows_no_times(cli, command):
    done = cli(*command, "--check-only", "--num-prompts", 2)
    assert done.code == 0 and "1.00x" not in done.out
    assert done.out.splitlines()[-1].startswith("prompt_lookup: 12 tokens of 2 rows")


def test_json_has_all_numbers(cli, command, tmp_path):
    out = tmp_path / "out.json"
    done = cli(*command, "--json", out)
    assert (done.code, done.err) == (0, "") and "overall" in done.out
    found = json.loads(out.read_text())
    assert found["complete"] and len(found["records"]) == 4
    assert [row["category"] for row in found["prompts"]] == ["news", "chat", "mt_bench", "news"]
    assert [row["seed"] for row in found["prompts"]] == [0, 5, 0, 0]
    machine = ("cpu", "cores", "device", "python", "jax", "jaxdecode", "dtype", "kv_dtype")
    assert set(found["machine"]) == set(machine) and found["machine"]["dtype"] == "float32"
    assert {row["line"] for row in found["summary"]} == {"ar", "prompt_lookup"}
    for row in found["summary"]:
        low, high = row["speedup_range"]
        assert low <= row["speedup"] <= high or row["line"] == "ar"
        assert sum(row["per_call"].values()) == row["nfe"]
    refused = cli(*command, "--json", out)
    assert refused.code == 1 and "--overwrite" in refused.err
    assert json.loads(cli(*command, "--json", "-").out)["complete"]


def test_markdown_and_pictures(cli, command, tmp_path):
    page, folder = tmp_path / "out.md", tmp_path / "plots"
    done = cli(*command, "--markdown", page, "--plots", folder)
    assert done.code == 0 and "drew" in done.err
    lines = page.read_text().splitlines()
    assert lines[4].startswith("| category | method | prompts |")
    assert [line for line in lines if line.startswith("| overall | `prompt_lookup` | 4 |")]
    assert {path.name for path in folder.iterdir()} == {"speedup.png", "accepted.png", "cost.png"}
    assert cli(*command, "--markdown", page).code == 1
    checked = cli(*command, "--check-only", "--plots", tmp_path / "untimed")
    assert checked.code == 0
    assert not (tmp_path / "untimed" / "speedup.png").exists()


def test_the_suite_that_comes_with_us_is_the_default(cli, checkpoint):
    run = ("bench", "--model", checkpoint, "--methods", "ar", "--max-new-tokens", 2)
    done = cli(*run, "--num-prompts", 1, "--check-only")
    assert done.code == 0 and "chat" in done.out


def test_two_results_are_compared(cli, command, tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    assert cli(*command, "--json", first).code == 0
    content = json.loads(first.read_text())
    for row in content["summary"]:
        row["tokens_per_second"] *= 2
        if row["line"] == "prompt_lookup":
            row["speedup"], row["speedup_range"] = 3.0, [99.0, 100.0]
    content["machine"]["cpu"] = "another one"
    second.write_text(json.dumps(content))
    done = cli("bench", "compare", first, second)
    rows = [line for line in done.out.splitlines() if "prompt_lookup" in line]
    assert done.code == 0 and len(rows) == 4 and all("faster" in row for row in rows)
    assert "another one" in done.err and "2.00" in rows[0]
    back = json.loads(cli("bench", "compare", second, first, "--json").out)
    assert {row["change"] for row in back["rows"] if row["line"] == "prompt_lookup"} == {"slower"}
    assert {row["change"] for row in back["rows"] if row["line"] == "ar"} == {"-"}
    second.write_text("{}")
    assert cli("bench", "compare", first, second).code == 2


def test_ctrl_c_keeps_what_was_measured_and_resume_goes_on(cli, command, tmp_path, monkeypatch):
    out, measure = tmp_path / "out.json", bench.measure

    def interrupted(*args, **options):
        for number, record in enumerate(measure(*args, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield record

    with monkeypatch.context() as patch:
        patch.setattr(bench, "measure", interrupted)
        done = cli(*command, "--json", out)
        assert done.code == 130 and "2 of 4 batches" in done.err and "--resume" in done.err
        table = cli(*command)
        assert table.code == 130 and "overall" in table.out and "2 of 4" in table.err
    half = json.loads(out.read_text())
    assert not half["complete"] and len(half["records"]) == 2
    other = cli(*command, "--json", out, "--resume", "--max-new-tokens", 7)
    assert other.code == 2 and "another plan" in other.err
    assert cli(*command, "--json", out, "--resume").code == 0
    whole = json.loads(out.read_text())
    assert whole["complete"] and whole["records"][:2] == half["records"]
    assert sorted(r["prompts"][0] for r in whole["records"]) == [0, 1, 2, 3]


def test_a_difference_is_said_and_fails(cli, command, monkeypatch):
    monkeypatch.setattr(bench.ties, "first_difference", lambda expected, got: 1)
    monkeypatch.setattr(bench.ties, "gap", lambda *args, **law: 0.5)
    done = cli(*command)
    assert done.code == 1 and "4 differ" in done.out and "differs" in done.out
    tie = cli(*command, "--tie-gap", 0.6)
    assert tie.code == 0 and "yes (4 near ties)" in tie.out and "differs" not in tie.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--methods", "promt_lookup"), "Did you mean 'prompt_lookup' or 'prophet'?"),
        (("--methods", "prompt_lookup:num_draft"), "name:option=value"),
        (("--batch-size", "1,x"), "separated by commas"),
        (("--batch-size", "0"), "--batch-size=0"),
        (("--num-prompts", "0"), "--num-prompts=0"),
        (("--temperature", "-1"), "temperature=-1"),
        (("--resume", "--remember", "--json", "x"), "--remember"),
        (("--resume",), "give --json FILE"),
        (("--engine", "vllm"), "--engine 'vllm' is not known"),
        (("--engine", "transformers:x"), "name:option=value"),
        (("--engine", "transformers", "--temperature", "1"), "use --temperature 0"),
        (("--engine", "llama-cpp", "--batch-size", "2"), "use --batch-size 1"),
        (("--methods", "prompt_lookup:temperature=1"), "an option of the whole run"),
        (("--suite", "nowhere.jsonl"), "--suite nowhere.jsonl: cannot be read"),
    ],
)
def test_what_cannot_be_used_is_refused(cli, command, args, message):
    done = cli(*command, *args)
    assert done.code == 2 and done.out == "" and message in done.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"turns": [], "category": "qa"}, '"turns"'),
        ({"turns": [1]}, '"turns"'),
        ({"prompt": "x", "category": 3}, '"category" is 3'),
        ({"prompt": "x", "kind": "y"}, "kind"),
    ],
)
def test_bad_lines_of_a_suite_are_named(cli, checkpoint, jsonl, line, message):
    done = cli("bench", "--model", checkpoint, "--suite", jsonl({"prompt": "x"}, line))
    assert done.code == 2 and "prompts.jsonl:2" in done.err and message in done.err


def test_a_method_that_cannot_run_the_model_is_refused_before_it_is_loaded(
    cli, command, monkeypatch
):
    from jaxdecode.cli.bench import Bench

    monkeypatch.setattr(Bench, "load_model", lambda *_: pytest.fail("loaded"))
    done = cli(*command, "--methods", "prompt_lookup,fast_dllm")
    assert done.code == 2 and "'fast_dllm' cannot run this model" in done.err


def test_a_suite_of_lists_needs_no_model_but_the_oracle(cli, tmp_path):
    run = ("bench", "--model", "oracle", "--suite", "lists:4", "--num-prompts", 8)
    run = (*run, "--methods", "llada,llada:steps=1", "--batch-size", 8)
    done = cli(*run)
    lines = done.out.splitlines()
    assert done.code == 0 and lines[0].startswith("| task | trial | accuracy | ideal |")
    assert len(lines) == 2 + 5 * 3
    assert [line for line in lines if line.startswith("| shuffle | llada:steps=1 | 0.000 |")]
    out, page = tmp_path / "out.json", tmp_path / "out.md"
    assert cli(*run, "--json", out, "--markdown", page, "--plots", tmp_path / "p").code == 0
    assert page.read_text() == done.out
    assert (tmp_path / "p" / "quality.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(out.read_text())
    assert found["size"] == 4 and len(found["rows"]) == 15
    assert cli(*run, "--json", out).code == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--suite", "lists:x"), "length of the lists as lists:6"),
        (("--suite", "lists:16"), "from 2 to 15"),
        (("--suite", "lists", "--methods", "llada,ar"), "'ar' cannot run this model"),
        (("--suite", "lists", "--resume"), "takes neither of --resume"),
        (("--suite", "lists", "--engine", "transformers"), "takes neither of --resume"),
        (("--suite", "lists", "--batch-size", "1,2"), "takes one"),
        (("--suite", "text"), "--suite text:FILE"),
        (("--suite", "text:none.txt"), "the oracle knows lists only"),
    ],
)
def test_suites_refuse_what_they_cannot_do(cli, args, message):
    done = cli("bench", "--model", "oracle", *args)
    assert done.code == 2 and message in done.err


def test_a_suite_refuses_a_model_that_writes_in_order(cli, checkpoint, monkeypatch):
    from jaxdecode.cli.bench import Bench

    monkeypatch.setattr(Bench, "load_model", lambda *_: pytest.fail("loaded"))
    done = cli("bench", "--model", checkpoint, "--suite", "lists")
    assert done.code == 2 and "'llada' cannot run this model" in done.err
