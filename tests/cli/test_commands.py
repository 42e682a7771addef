"""The other commands, and what all commands do with errors."""

import json

import pytest

import jaxdecode
from jaxdecode.cli.main import main
from jaxdecode.errors import CheckpointError

COMMANDS = (
    "generate", "merge", "convert", "models", "inspect", "verify", "methods", "bench", "exactness",
    "plan", "tree", "distill", "train", "doctor", "completion", "show",
)  # fmt: skip


def test_help_and_version(cli):
    top = cli("--help")
    assert top.code == 0 and all(name in top.out for name in COMMANDS) and top.err == ""
    assert cli() == top
    for name in COMMANDS:
        one = cli(name, "--help")
        assert one.code == 0 and "--debug" in one.out
    assert cli("--version").out.startswith(f"jaxdecode {jaxdecode.__version__}\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("generat",), "generat"),
        (("generate", "--modle", "x"), "--modle"),
        (("generate", "--prompt", "x"), "--model"),
        (("generate", "--model", "x", "--top-k", "two"), "--top-k"),
        (("convert", "only-one"), "DST"),
        (("convert", "a", "b", "--to", "pickle"), "pickle"),
    ],
)
def test_usage_errors(cli, args, message):
    done = cli(*args)
    assert done.code == 2 and done.out == "" and message in done.err


def test_models(cli):
    listed = json.loads(cli("models", "--json").out)
    assert {"smollm2-135m", "gemma3-270m"} <= {row["name"] for row in listed}
    for row in listed:
        assert list(row) == ["name", "description", "num_bytes", "licence", "terms", "cached"]
        assert row["cached"] is False and row["num_bytes"] > 1e6
    table = cli("models").out.splitlines()
    assert len(table) == len(listed) + 1 and table[0].startswith("NAME")


def test_methods(cli):
    rows = json.loads(cli("methods", "--json").out)
    assert rows == jaxdecode.methods() and rows[0]["name"] == "ar"
    table = cli("methods", "--markdown").out.splitlines()
    assert table[2].startswith("| `ar` |") and len(table) == len(rows) + 2
    assert cli("methods", "--markdown", "--json").code == 2
    assert "ar " in cli("methods").out


def test_inspect(cli, checkpoint):
    found = json.loads(cli("inspect", checkpoint, "--json").out)
    assert found["kind"] == "safetensors" and found["num_parameters"] == 27_104
    assert "tensors" not in found
    full = json.loads(cli("inspect", checkpoint, "--json", "--tensors").out)
    assert len(full["tensors"]) == 21
    text = cli("inspect", checkpoint).out
    assert "27,104" in text and "head.kernel" not in text
    assert "head.kernel" in cli("inspect", checkpoint, "--tensors").out


def test_convert_and_back_is_identical(cli, checkpoint, tmp_path):
    ours, back = tmp_path / "ours", tmp_path / "back"
    made = json.loads(cli("convert", checkpoint, ours, "--json").out)
    assert made["path"] == str(ours) and made["to"] == "orbax" and made["num_bytes"] > 100_000
    assert "sound" in cli("verify", ours).out
    text = cli("convert", ours, back, "--to", "safetensors")
    assert text.code == 0 and "(safetensors)" in text.out
    prompt = ("--prompt", "ab", "--max-new-tokens", 4, "--json", "--logprobs")
    results = [
        cli("generate", "--model", path, *prompt).records[0] for path in (checkpoint, ours, back)
    ]
    for result in results:
        assert result["logprobs"] == results[0]["logprobs"]
        assert result["tokens"] == results[0]["tokens"]


def test_convert_dtype_and_overwrite(cli, checkpoint, tmp_path):
    dst = tmp_path / "small"
    assert cli("convert", checkpoint, dst, "--dtype", "bfloat16").code == 0
    assert set(json.loads(cli("inspect", dst, "--json").out)["dtypes"]) == {"bfloat16"}
    refused = cli("convert", checkpoint, dst)
    assert refused.code == 1 and "--overwrite" in refused.err
    assert cli("convert", checkpoint, dst, "--overwrite").code == 0
    assert set(json.loads(cli("inspect", dst, "--json").out)["dtypes"]) == {"float32"}


def test_verify_finds_damage(cli, checkpoint, tmp_path):
    ours = tmp_path / "ours"
    cli("convert", checkpoint, ours)
    assert json.loads(cli("verify", ours, "--json").out)["ok"] is True
    largest = max((p for p in ours.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    largest.write_bytes(damaged)
    done = cli("verify", ours, "--json")
    assert done.code == 1 and done.err.startswith("error: ")
    found = json.loads(done.out)
    assert found["ok"] is False and found["error"]
    assert cli("generate", "--model", ours, "--prompt", "a").code == 1


@pytest.mark.parametrize("command", ["inspect", "verify", "generate", "convert"])
def test_unknown_names_and_missing_paths(cli, command, tmp_path):
    more = {"generate": ("--prompt", "a"), "convert": (tmp_path / "dst",)}.get(command, ())
    option = ("--model",) if command == "generate" else ()
    near = cli(command, *option, "smolm2-135m", *more)
    assert near.code == 2 and near.out == "" and "Did you mean 'smollm2-135m'?" in near.err
    missing = cli(command, *option, tmp_path / "nothing", *more)
    assert missing.code == 2 and "does not exist" in missing.err


def test_terms_must_be_accepted(cli):
    done = cli("inspect", "gemma3-270m")
    assert done.code == 2 and "--accept-terms" in done.err


def _fail_with(monkeypatch, error: BaseException):
    from jaxdecode.cli.models import Models

    def fail(self):
        raise error

    monkeypatch.setattr(Models, "run", fail)


def test_exit_codes_and_one_line_per_error(cli, monkeypatch):
    _fail_with(monkeypatch, CheckpointError("two\nlines"))
    assert cli("models") == (1, "", "error: two lines\n")
    _fail_with(monkeypatch, TypeError("a bug"))
    assert cli("models") == (1, "", "error: TypeError: a bug (--debug shows where)\n")
    _fail_with(monkeypatch, KeyboardInterrupt())
    assert cli("models") == (130, "", "interrupted\n")


def test_debug_shows_the_traceback(cli, monkeypatch):
    _fail_with(monkeypatch, TypeError("a bug"))
    done = cli("models", "--debug")
    assert done.code == 1 and "Traceback" in done.err
    assert done.err.endswith("error: TypeError: a bug\n")


def test_main_reads_the_real_command_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["jaxdecode", "--version"])
    assert main() == 0 and capsys.readouterr().out.startswith("jaxdecode ")
