"""What every command takes: --quiet, --verbose, --offline; and versions, colours, completion."""

import shutil
import subprocess

import pytest

from jaxdecode import paths
from jaxdecode.cli import machine
from jaxdecode.cli.common import note
from jaxdecode.cli.main import parse
from jaxdecode.cli.models import Models

PROMPT = ("--prompt", "ab", "--max-new-tokens", 2)


def test_options_of_every_command_stand_anywhere():
    for args in (["--offline", "models", "--json"], ["models", "--json", "--offline"]):
        line = parse(args)
        assert line.everywhere.offline and line.command == Models(json=True)
    assert not parse(["models"]).everywhere.offline


def test_quiet_leaves_out_notes_and_keeps_errors(cli, checkpoint, tmp_path):
    loud = cli("generate", "--model", checkpoint, *PROMPT)
    quiet = cli("generate", "--model", checkpoint, *PROMPT, "--quiet")
    assert loud.out == quiet.out and loud.err and quiet.err == ""
    wrong = cli("--quiet", "inspect", tmp_path / "nothing")
    assert wrong.code == 2 and wrong.err.startswith("error: ")


def test_verbose_says_what_it_took(cli, checkpoint):
    plain = cli("generate", "--model", checkpoint, *PROMPT)
    done = cli("generate", "--model", checkpoint, *PROMPT, "--verbose")
    assert done.out == plain.out and "peak memory" not in plain.err
    assert "programs compiled" in done.err and "peak memory" in done.err
    # The next command of this process is as loud as it says itself.
    assert cli("generate", "--model", checkpoint, *PROMPT).err.count("peak memory") == 0


def test_quiet_and_verbose_are_opposites(cli):
    done = cli("models", "--quiet", "--verbose")
    assert done.code == 2 and "opposites" in done.err


def test_a_voice_is_not_kept(cli, capsys):
    cli("models", "--quiet")
    cli("models")
    note("heard")
    assert capsys.readouterr().err == "heard\n"


@pytest.mark.parametrize(
    ("value", "is_on"), [("", False), ("0", False), ("False", False), ("1", True)]
)
def test_offline_is_a_variable_too(monkeypatch, value, is_on):
    monkeypatch.setenv("JAXDECODE_OFFLINE", value)
    assert paths.offline() is is_on


def test_offline_names_what_would_be_fetched(cli):
    done = cli("inspect", "smollm2-135m", "--offline")
    assert done.code == 1 and done.out == ""
    assert "offline: " in done.err and "of smollm2-135m (" in done.err and ".gguf" in done.err
    assert "--offline (JAXDECODE_OFFLINE)" in done.err


def test_offline_hub_models(cli, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("JAXDECODE_OFFLINE", "1")
    done = cli("inspect", "hf:nobody/has-this-model")
    assert done.code == 1 and "offline: hf:nobody/has-this-model" in done.err


def test_versions(cli, monkeypatch):
    lines = cli("--version").out.splitlines()
    assert [line.split()[0] for line in lines] == ["jaxdecode", "python", "jax", "jaxlib", "flax"]
    found = [{"platform": "tpu", "kind": "TPU v5 lite", "bytes": 17e9}] * 4
    monkeypatch.setattr(machine, "devices", lambda: (found, None))
    more = cli("--version", "--verbose")
    assert more.code == 0 and more.out.endswith("devices 4 x TPU v5 lite (17.0 GB each)\n")


def test_help_of_a_terminal_without_colours(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for coloured in (True, False):
        with pytest.raises(SystemExit):
            parse(["models", "--help"])
        assert ("\x1b[" in capsys.readouterr().out) is coloured
        monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(cli, shell, tmp_path):
    done = cli("completion", shell)
    assert done.code == 0 and "--max-new-tokens" in done.out and "doctor" in done.out
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(done.out)
        subprocess.run([shell, "-n", script], check=True)


def test_bash_completes(cli, tmp_path):
    if not shutil.which("bash"):
        pytest.skip("no bash here")
    script = tmp_path / "script"
    script.write_text(cli("completion", "bash").out)
    typed = 'COMP_WORDS=(jaxdecode doc); COMP_CWORD=1; COMP_LINE="jaxdecode doc"; COMP_POINT=13'
    code = f'source {script}; {typed}; _tyro_jaxdecode; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code], check=True, capture_output=True, text=True)
    assert "doctor" in done.stdout
