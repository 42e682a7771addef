import json
import random
import shutil

import gguf
import numpy as np
import pytest

from jaxdecode.convert.checkpoint import MANIFEST, _encode, read_manifest
from jaxdecode.convert.open import open_source
from jaxdecode.convert.pipeline import convert, inspect, read_params, read_tokenizer, verify
from jaxdecode.errors import (
    CheckpointError,
    CorruptCheckpointError,
    DestinationExistsError,
    InputError,
)
from jaxdecode.models.config import param_shapes
from tests.convert.gguf_files import tiny_hf, write_gguf
from tests.golden.corpus import tiny_folder

QUIET = {"progress": False}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours") / "gemma3"
    source = shutil.copytree(tiny_folder("gemma3"), folder.with_name("hf"))
    (source / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    (source / "evil.py").write_text("raise SystemExit")
    return convert(source, folder, **QUIET)


def load(path):
    source = open_source(path)
    config, params = source.config, read_params(source)
    return config, dict(params)


def test_load_gives_every_parameter_in_order(intact):
    config, params = load(intact)
    assert {name: a.shape for name, a in params.items()} == param_shapes(config)
    assert list(params) == list(param_shapes(config))
    _, original = load(tiny_folder("gemma3"))
    assert all(np.array_equal(params[name], original[name]) for name in params)


def test_the_folder_of_a_run_says_where_its_model_is(intact, tmp_path):
    shutil.copytree(intact, tmp_path / "run" / "model")
    with pytest.raises(InputError, match="folder; the run's model is .*model"):
        open_source(tmp_path / "run")


def test_provenance_and_tokenizer_files_but_no_code(intact):
    manifest = read_manifest(intact)
    assert manifest["source"]["kind"] == "safetensors"
    assert len(manifest["source"]["sha256"]["model.safetensors"]) == 64
    assert (intact / "tokenizer" / "tokenizer_config.json").is_file()
    assert not list(intact.rglob("*.py"))
    assert str(tiny_folder("gemma3")) not in (intact / MANIFEST).read_text()


def test_the_tokenizer_of_a_gguf_file_is_converted_with_it(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", "a", "b", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3, 1, 1] + [6] * 256
    fields = {
        "tokenizer.ggml.model": ("llama", gguf.GGUFValueType.STRING),
        "tokenizer.ggml.tokens": (pieces, gguf.GGUFValueType.ARRAY),
        "tokenizer.ggml.scores": ([0.0] * len(pieces), gguf.GGUFValueType.ARRAY),
        "tokenizer.ggml.token_type": (kinds, gguf.GGUFValueType.ARRAY),
        "tokenizer.ggml.bos_token_id": (1, gguf.GGUFValueType.UINT32),
        "tokenizer.ggml.eos_token_id": (2, gguf.GGUFValueType.UINT32),
    }
    write_gguf(tmp_path / "m.gguf", *tiny_hf("llama_plain"), fields=fields)
    direct = read_tokenizer(open_source(tmp_path / "m.gguf"))
    ours = open_source(convert(tmp_path / "m.gguf", tmp_path / "ours", **QUIET))
    assert ours.token_ids == {"bos_token_id": 1, "eos_token_id": 2}
    converted = read_tokenizer(ours)
    assert converted.encode("ab ba") == direct.encode("ab ba") != []
    assert read_tokenizer(open_source(tiny_folder("llama"))) is None


def test_inspect_and_verify(intact):
    seen = inspect(intact)
    assert (seen["kind"], seen["family"]) == ("orbax", "gemma3")
    assert seen["num_parameters"] * 4 == seen["num_bytes"]
    assert seen["dtypes"] == {"float32": len(seen["tensors"])}
    assert json.loads(json.dumps(seen)) == seen | {"config": json.loads(json.dumps(seen["config"]))}
    assert verify(intact)["checks"][0] == "sha256"


def test_verify_reports_values_that_are_not_finite(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(tiny_folder("qwen3"), tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CorruptCheckpointError, match="final_norm.scale holds infinite or NaN"):
        verify(folder)


def damage(folder, rng):
    """One random flip, cut, deletion, addition or swap; returns what was done."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    path = rng.choice(files)
    raw = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "flip", "cut", "delete", "grow", "extra"])
    if kind in ("flip", "cut") and not raw:
        kind = "delete"
    if kind == "flip":
        at = rng.randrange(len(raw))
        raw[at] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
    elif kind == "cut":
        path.write_bytes(raw[: rng.randrange(len(raw))])
    elif kind == "delete":
        path.unlink()
    elif kind == "grow":
        path.write_bytes(raw + b"\0")
    else:
        path.with_name(f"{path.name}.extra").write_bytes(b"x")
    return f"{kind} {path.relative_to(folder)}"


def run_damage(intact, tmp_path, rounds, seed):
    rng = random.Random(seed)
    silent = []
    for _ in range(rounds):
        copy = tmp_path / "copy"
        shutil.copytree(intact, copy)
        what = damage(copy, rng)
        # Both open the checkpoint in the same way; each is called in half of the cases.
        try:
            verify(copy) if rng.random() < 0.5 else load(copy)
            silent.append(what)
        except CorruptCheckpointError:
            pass
        shutil.rmtree(copy)
    assert silent == []


def test_damage_is_always_caught(intact, tmp_path):
    load(intact)
    run_damage(intact, tmp_path, 60, seed=0)


@pytest.mark.slow
def test_damage_is_always_caught_1000_times(intact, tmp_path):
    run_damage(intact, tmp_path, 1000, seed=1)


def test_missing_manifest_and_links(intact, tmp_path):
    copy = shutil.copytree(intact, tmp_path / "copy")
    (copy / MANIFEST).rename(tmp_path / MANIFEST)
    with pytest.raises(CorruptCheckpointError, match="manifest.json is missing"):
        load(copy)
    (tmp_path / MANIFEST).rename(copy / MANIFEST)
    load(copy)
    config = copy / "tokenizer" / "tokenizer_config.json"
    config.rename(tmp_path / "elsewhere.json")
    config.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(CorruptCheckpointError, match="a link"):
        load(copy)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"version": 99}, CheckpointError),
        ({"config": {"family": "llama"}}, CorruptCheckpointError),
        ({"config": []}, CorruptCheckpointError),
        ({"groups": [["embed.embedding"]]}, CorruptCheckpointError),
        ({"groups": 3}, CorruptCheckpointError),
        ({"dtypes": {}}, CorruptCheckpointError),
        ({"dtypes": None}, CorruptCheckpointError),
        ({"files": []}, CorruptCheckpointError),
        ({"files": {"../../x": {"size": 1, "sha256": ""}}}, CorruptCheckpointError),
    ],
)
def test_forged_manifests_with_a_right_digest_are_typed_errors(intact, tmp_path, change, error):
    copy = shutil.copytree(intact, tmp_path / "copy")
    body = read_manifest(copy)
    (copy / MANIFEST).write_bytes(_encode(body | change))
    with pytest.raises(error):
        load(copy)


def test_existing_destinations(intact, tmp_path):
    with pytest.raises(DestinationExistsError, match="--overwrite"):
        convert(tiny_folder("llama"), intact, **QUIET)
    other = tmp_path / "work"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(DestinationExistsError, match="not a checkpoint"):
        convert(tiny_folder("llama"), other, overwrite=True, **QUIET)
    assert (other / "thesis.txt").read_text() == "precious"
    target = convert(tiny_folder("llama"), tmp_path / "new", **QUIET)
    convert(tiny_folder("qwen3"), target, overwrite=True, **QUIET)
    assert inspect(target)["family"] == "qwen3"
    assert names_in(tmp_path) == ["new", "work"]
    with pytest.raises(InputError, match="both source and destination"):
        convert(target, target, overwrite=True, **QUIET)


def test_options_are_checked():
    for options in ({"to": "pickle"}, {"dtype": "int8"}):
        with pytest.raises(InputError, match="pickle|int8"):
            convert(tiny_folder("llama"), "/nonexistent/x", **options, **QUIET)
