"""A checkpoint with a tokenizer and a chat template, and the command line called in-process."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import tokenizers
from tokenizers.models import BPE

from jaxdecode.cli import bench, distill, generate, generate_job
from jaxdecode.cli.main import main

TINY = Path(__file__).parents[1] / "golden" / "tiny" / "llama"
TEMPLATE = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}"


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    """The tiny Llama with a character per token; nothing ends a text early."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(TINY / name, folder / name)
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {letter: i for i, letter in enumerate(["\u0120", *letters, "\u0109"])}
    tokenizer = tokenizers.Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return str(folder)


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Runs a command line; the user's caches are out of reach."""
    monkeypatch.setenv("JAXDECODE_CACHE", str(tmp_path / "cache"))
    # --offline sets it; what is set before is put back after the test.
    monkeypatch.setenv("JAXDECODE_OFFLINE", "")
    for command in (bench, distill, generate, generate_job):
        monkeypatch.setattr(command, "use_compile_cache", lambda: None)

    def run(*args: object) -> Outcome:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def jsonl(tmp_path):
    """Writes lines, given as text or as values, and returns the path."""

    def write(*lines: object) -> str:
        text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path = tmp_path / "prompts.jsonl"
        path.write_text("\n".join(text) + "\n", encoding="utf-8")
        return str(path)

    return write
