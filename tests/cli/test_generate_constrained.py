"""`jaxdecode generate` with constraints: from files and flags to texts of that form."""

import json
import re
import shutil
from pathlib import Path

import pytest

END = "\u0109"  # the last token of the tiny checkpoint


@pytest.fixture(scope="module")
def ending(checkpoint, tmp_path_factory):
    """The tiny checkpoint with a token that ends a text."""
    folder = tmp_path_factory.mktemp("ending") / "tiny"
    shutil.copytree(checkpoint, folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    token = content["model"]["vocab"][END]
    content["added_tokens"] = [{"id": token, "content": END, "special": True, **flags}]
    file.write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    return str(folder)


@pytest.fixture
def generate(cli, ending):
    return lambda *args: cli("generate", "--model", ending, "--prompt", "ab", *args)


def test_a_schema_from_a_file(generate, tmp_path):
    schema = tmp_path / "schema.json"
    items = {"enum": [1, "x"]}
    schema.write_text(json.dumps({"type": "array", "items": items, "minItems": 2, "maxItems": 3}))
    done = generate("--json-schema", schema, "--method", "forced", "--temperature", 1)
    assert done.code == 0
    assert set(json.loads(done.out)) <= {1, "x"}


def test_an_expression_and_a_grammar(generate, tmp_path):
    assert re.fullmatch("[0-9]{3}\n", generate("--regex", "[0-9]{3}").out)
    grammar = tmp_path / "g.lark"
    grammar.write_text('start: "yes" | "no"')
    assert generate("--grammar", grammar).out in ("yes\n", "no\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--json-schema", "nowhere.json"), "--json-schema nowhere.json cannot be read"),
        (("--grammar", "nowhere.lark"), "--grammar nowhere.lark cannot be read"),
        (("--json-schema", __file__), "not valid JSON"),
        (("--regex", "a", "--method", "superposed"), "cannot honour regex"),
        (("--regex", "(a"), "regex cannot be used"),
    ],
)
def test_what_cannot_be_is_named(generate, args, message):
    done = generate(*args)
    assert done.code != 0 and message in done.err and done.out == ""


def test_the_settings_of_a_job_hold_the_files(generate, jsonl, cli, ending, tmp_path):
    """A job goes on only with the grammar that it began with."""
    grammar = tmp_path / "g.lark"
    job = ["--model", ending, "--prompts", jsonl({"prompt": "ab"}), "--grammar", grammar]
    job += ["--out", f"{tmp_path}/out/"]
    grammar.write_text('start: "yes"')
    assert cli("generate", *job).code == 0
    (line,) = (Path(tmp_path) / "out" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == "yes"
    grammar.write_text('start: "no"')
    assert "grammar" in cli("generate", *job).err
