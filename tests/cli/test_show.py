"""generate --trace, and show: in lines, as a page, and what is refused."""

import pytest

from jaxdecode.trace import files


@pytest.fixture
def trace(cli, checkpoint, tmp_path):
    """Writes a trace of two prompts with a method, and returns its path."""

    def write(name="a.jsonl", *args):
        (tmp_path / "in.jsonl").write_text('{"prompt": "abab"}\n{"tokens": [1, 2, 3], "seed": 5}\n')
        path = tmp_path / name
        asked = ("--prompts", tmp_path / "in.jsonl", "--max-new-tokens", 6, "--trace", path)
        done = cli("generate", "--model", checkpoint, *asked, "--batch-size", 1, *args)
        assert done.code == 0, done.err
        return path

    return write


def test_a_trace_of_several_batches_is_one_file(trace):
    found = files.load(trace("a.jsonl", "--method", "prompt_lookup", "--num-draft", 2))
    assert [row.seed for row in found.rows] == [0, 5] and found.method == "prompt_lookup"
    assert found.options["num_draft"] == 2 and found.names == {}
    assert all(len(row.tokens) == 6 for row in found.rows)


def test_it_is_shown_in_lines(cli, trace):
    done = cli("show", trace(), "--row", 1)
    assert done.code == 0 and done.out.count("\n") == 7
    assert done.out.startswith("step    1  0 of 0 drafts")
    assert "6 tokens in 6 steps, 1.00 per step; end: length" in done.out and "\x1b" not in done.out


def test_one_or_two_become_a_page(cli, trace, tmp_path):
    first, second = trace("a.jsonl"), trace("b.jsonl", "--temperature", 1.0)
    page = tmp_path / "out.html"
    assert cli("show", first, "--html", page).code == 0
    assert page.read_text().startswith("<!doctype html>")
    again = cli("show", first, second, "--html", page)
    assert again.code != 0 and "--overwrite" in again.err
    assert cli("show", first, second, "--html", page, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("a.jsonl", "a.jsonl"), "add --html FILE"),
        (("a.jsonl", "a.jsonl", "a.jsonl"), "one trace, or two"),
        (("a.jsonl", "--row", "9"), "--row 9: the trace has 2 texts"),
        (("a.jsonl", "--speed", "0"), "--speed=0.0"),
        (("in.jsonl",), "no trace of jaxdecode"),
        (("none.jsonl",), "cannot be read"),
    ],
)
def test_what_cannot_be_shown_is_named(cli, trace, tmp_path, args, message):
    trace()
    done = cli("show", *[tmp_path / arg if arg.endswith("l") else arg for arg in args])
    assert done.code == 2 and message in done.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--stream",), "leave out --stream"),
        (("--method", "superposed"), "does not write token by token"),
    ],
)
def test_what_cannot_be_traced_is_named(cli, checkpoint, tmp_path, args, message):
    asked = ("--prompt", "ab", "--max-new-tokens", 3, "--trace", tmp_path / "t.jsonl")
    done = cli("generate", "--model", checkpoint, *asked, *args)
    assert done.code == 2 and message in done.err and not (tmp_path / "t.jsonl").exists()


def test_a_trace_that_exists_is_kept(cli, checkpoint, trace):
    path = trace()
    done = cli("generate", "--model", checkpoint, "--prompt", "ab", "--trace", path)
    assert done.code != 0 and f"--trace {path} exists" in done.err
