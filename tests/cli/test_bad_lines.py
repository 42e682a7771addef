"""generate --out FOLDER and lines that cannot be used: recorded, or found before anything runs."""

import json
from pathlib import Path

import pytest

from jaxdecode import api
from jaxdecode import jsonl as reading
from jaxdecode.errors import InputError
from tests.cli.test_generate_job import LAW, names

# What can be wrong with a line, and what is said of it.
POISON = {
    "{": "line 2: not JSON",
    "[1]": "line 3: expected an object",
    '{"text": "a"}': "line 4: expected an object with exactly one of",
    '{"prompt": 5}': 'line 5: "prompt" must be text, got a JSON number',
    '{"tokens": [1], "seed": "x"}': "line 6: \"seed\" is 'x', expected a 64-bit integer",
    '{"tokens": [1.5]}': "line 7: prompt token id=1.5",
    json.dumps({"tokens": [1] * 600}): "line 8: the prompt has 600 tokens",
    '{"prompt": "\\ud800"}': "line 9: text has '\\ud800'",
    '{"messages": [{"role": 1}]}': "line 10: messages[0].role must be text",
    '{"tokens": []}': 'line 11: "tokens" is empty',
    '{"prompt": "\ufffe"}': None,  # its bytes are replaced by some that are not UTF-8
    '{"tokens": [' + "[" * 100_000: "line 13: not usable JSON",
    '{"tokens": [' + "9" * 5000 + "]}": "line 14: not usable JSON",
}


@pytest.fixture
def poisoned(jsonl):
    path = Path(jsonl('{"tokens": [1]}', *POISON, '{"tokens": [2]}'))
    path.write_bytes(path.read_bytes().replace("\ufffe".encode(), b"\xff\xfe"))
    return path


def test_poisoned_lines_stop_nothing(cli, checkpoint, poisoned, tmp_path):
    run = (
        "generate",
        "--model",
        checkpoint,
        "--prompts",
        poisoned,
        *LAW,
        "--out",
        f"{tmp_path}/o/",
    )
    done = cli(*run, "--n", 2)
    assert done.code == 0
    assert f"{len(POISON)} of these prompts have an error, the first: line 2: not JSON" in done.err
    assert f"{len(POISON)} of {len(POISON) + 2} prompts with an error" in done.err
    records = [json.loads(line) for line in (tmp_path / "o" / "results.jsonl").open()]
    first, *bad, last = records[::2]
    assert [(r["index"], r["sample"]) for r in records[:5]] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
    ]
    assert len(first["tokens"]) == len(last["tokens"]) == 6
    for record, wanted in zip(bad, POISON.values(), strict=True):
        assert set(record) == {"index", "error", "sample"}
        assert (wanted or "line 12: not UTF-8 text") in record["error"]
    again = json.loads(cli(*run, "--n", 2, "--json").out)
    assert (again["num_errors"], again["new_errors"]) == (len(POISON), 0)


def test_on_error_stop_finds_the_line_before_anything_is_decoded(
    cli, checkpoint, jsonl, tmp_path, monkeypatch
):
    lines, out = ['{"tokens": [1]}', '{"tokens": [500]}'], tmp_path / "out"
    run = ("generate", "--model", checkpoint, *LAW, "--out", f"{out}/", "--prompts")
    late = cli(*run, jsonl(*lines), "--on-error", "stop")
    assert late.code == 2 and "prompts.jsonl:2: prompt token id=500" in late.err
    assert names(out) == [".lock", "job.json"]
    assert cli(*run, jsonl(*lines)).code == 0
    assert "error" in (out / "results.jsonl").read_text()
    monkeypatch.setattr(api, "load", None)
    early = cli(*run, jsonl(*lines, "{"), "--on-error", "stop")
    assert early.code == 2 and "prompts.jsonl:3: not JSON" in early.err


def test_a_file_of_nothing_but_errors_is_a_failure(cli, checkpoint, jsonl, tmp_path):
    run = ("generate", "--model", checkpoint, *LAW, "--out", f"{tmp_path}/out/", "--prompts")
    done = cli(*run, jsonl('{"text": "a"}', '{"text": "b"}'))
    assert done.code == 1 and "2 of 2 prompts with an error" in done.err


def test_lines_without_end_do_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_MAX_LINE", 8)
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbf{}\n" + b"a" * 8 + b"\n" + b"b" * 100 + b"\n\n{}\r\n1234567\n{}")
    found = list(reading.lines(str(path), option="--x"))
    assert found == [(1, b"{}\n"), (2, b"a" * 8), (3, b"b" * 8), (5, b"{}\r\n"), (6, b"1234567\n"),
                     (7, b"{}")]  # fmt: skip
    assert reading.parse(found[3][1], "x:5", "") == {}
    for number in (1, 2):
        with pytest.raises(InputError, match="x:9: longer than"):
            reading.parse(found[number][1], "x:9", "")
