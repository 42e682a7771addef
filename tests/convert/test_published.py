"""Heads in their authors' layouts: bit-exact both ways, and equal to plain NumPy."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxdecode as jd
from jaxdecode.cli.main import main
from jaxdecode.convert import heads as head_files
from jaxdecode.convert import published
from jaxdecode.errors import (
    CorruptCheckpointError,
    InputError,
    UnsafeCheckpointError,
    UnsupportedError,
)
from jaxdecode.heads import medusa
from tests import toys
from tests.training import gate

WIDTH, VOCAB, HEADS = 32, 61, 3


def medusa_tensors(rng, layers=1, dtype=np.float32):
    """Random tensors with the names and shapes of FasterDecoding/Medusa."""
    tensors = {}
    for head in range(HEADS):
        for layer in range(layers):
            tensors[f"{head}.{layer}.linear.weight"] = rng.normal(size=(WIDTH, WIDTH)) * 0.2
            tensors[f"{head}.{layer}.linear.bias"] = rng.normal(size=WIDTH) * 0.2
        tensors[f"{head}.{layers}.weight"] = rng.normal(size=(VOCAB, WIDTH))
    return {name: tensor.astype(dtype) for name, tensor in tensors.items()}


def medusa_config(layers=1):
    return {
        "medusa_num_heads": HEADS,
        "medusa_num_layers": layers,
        "base_model_name_or_path": "toy",
        "transformers_version": "4.31.0",
    }


@pytest.fixture
def folder(tmp_path):
    def write(tensors, config, name="theirs"):
        path = tmp_path / name
        path.mkdir()
        save_file(tensors, path / "medusa_lm_head.safetensors")
        (path / "config.json").write_text(json.dumps(config))
        return path

    return write


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_medusa_heads_come_back_bit_by_bit(layers, dtype, folder, tmp_path, capsys):
    tensors = medusa_tensors(np.random.default_rng(0), layers, dtype)
    theirs = folder(tensors, medusa_config(layers))
    assert main(["convert", str(theirs), str(tmp_path / "ours")]) == 0
    assert (
        main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "published"]) == 0
    )
    assert "(published)" in capsys.readouterr().out
    back = load_file(tmp_path / "back" / "medusa_lm_head.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and back[name].tobytes() == tensor.tobytes()
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == medusa_config(layers)


def test_medusa_heads_say_what_numpy_says_and_decode(folder):
    tensors = medusa_tensors(np.random.default_rng(1), 2)
    heads, lm = published.read(folder(tensors, medusa_config(2))), toys.model()
    hidden = np.random.default_rng(2).normal(size=WIDTH)
    params = head_files.fitting(heads, lm.config, np.float32).params
    found = medusa.logits(heads.spec.shape, params, np.float32(hidden), lambda x: x)
    for head in range(HEADS):
        x = hidden
        for layer in range(2):
            block = f"{head}.{layer}.linear."
            inner = tensors[block + "weight"] @ x + tensors[block + "bias"]
            x = x + inner / (1 + np.exp(-inner))
        np.testing.assert_allclose(
            found[head], tensors[f"{head}.2.weight"] @ x, atol=1e-4, rtol=1e-5
        )
    asked = dict(max_new_tokens=8)
    out = jd.generate(lm, [3, 1, 4], method="medusa", heads=heads, **asked)
    assert out.tokens == jd.generate(lm, [3, 1, 4], **asked).tokens


def test_affine_maps_have_no_place_there(tmp_path):
    heads = gate.random_heads("medusa", {"affine": True})
    with pytest.raises(UnsupportedError, match="no place for the affine maps"):
        published.write(heads, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_what_does_not_belong_is_named(folder, tmp_path):
    tensors = medusa_tensors(np.random.default_rng(0))
    lacking = {name: tensor for name, tensor in tensors.items() if name != "1.0.linear.bias"}
    with pytest.raises(CorruptCheckpointError, match="lacks .*1.0.linear.bias"):
        published.read(folder(lacking, medusa_config(), "a"))
    with pytest.raises(CorruptCheckpointError, match="has .*'other'.*no place"):
        published.read(folder(tensors | {"other": np.zeros(3)}, medusa_config(), "b"))
    odd = tensors | {"1.0.linear.weight": np.zeros((3, 3), np.float32)}
    with pytest.raises(CorruptCheckpointError, match="do not fit together"):
        published.read(folder(odd, medusa_config(), "c"))
    with pytest.raises(InputError, match="no published heads.*FasterDecoding/Medusa"):
        published.read(folder(tensors, {}, "d"))
    pickled = tmp_path / "e"
    pickled.mkdir()
    (pickled / "config.json").write_text(json.dumps(medusa_config()))
    (pickled / "medusa_lm_head.pt").write_bytes(b"\x80")
    with pytest.raises(UnsafeCheckpointError, match="pickle"):
        published.read(pickled)


def test_options_that_mean_nothing_for_heads_are_refused(folder, tmp_path, capsys):
    theirs = folder(medusa_tensors(np.random.default_rng(0)), medusa_config())
    out = str(tmp_path / "out")
    assert main(["convert", str(theirs), out, "--dtype", "bfloat16"]) == 2
    assert main(["convert", str(theirs), out]) == 0
    assert main(["convert", out, str(tmp_path / "more")]) == 2
    assert "our own heads already" in capsys.readouterr().err
