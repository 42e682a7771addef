import json
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdecode.convert.open import open_source
from jaxdecode.convert.pipeline import convert, read_params
from jaxdecode.convert.safetensors import write_folder
from jaxdecode.errors import (
    CheckpointError,
    CorruptCheckpointError,
    InputError,
    JaxdecodeError,
    UnsafeCheckpointError,
)
from jaxdecode.models.config import param_shapes
from tests.convert import tiny_denoisers
from tests.golden.corpus import TINY, tiny_folder

QUIET = {"progress": False}


@pytest.fixture
def folder(tmp_path):
    return copy_tiny("llama_plain", tmp_path / "hf")


def copy_tiny(name, dst):
    if name in tiny_denoisers.NAMES:
        return tiny_denoisers.write(dst, name)
    dst.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(tiny_folder(name) / file, dst / file)
    return dst


def tensors_of(folder):
    out = {}
    for file in sorted(folder.glob("*.safetensors")):
        out |= load_file(file)
    return out


def same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


def shard(folder, count=3):
    """Splits model.safetensors into several files with an index."""
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(count):
        name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[i::count]}
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weight_map


@pytest.mark.parametrize("name", [*TINY, *tiny_denoisers.NAMES])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hf_to_ours_to_hf_is_bit_identical(name, dtype, tmp_path):
    source = copy_tiny(name, tmp_path / "hf")
    if dtype == "bfloat16":
        halved = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors_of(source).items()}
        save_file(halved, source / "model.safetensors", metadata={"format": "pt"})
    ours = convert(source, tmp_path / "ours", **QUIET)
    back = convert(ours, tmp_path / "back", to="safetensors", **QUIET)
    same_bits(tensors_of(source), tensors_of(back))
    assert open_source(back).config == open_source(source).config
    again = convert(back, tmp_path / "again", **QUIET)
    same = convert(again, tmp_path / "same", to="safetensors", **QUIET)
    for file in ("config.json", "model.safetensors"):
        assert (same / file).read_bytes() == (back / file).read_bytes()
    assert open_source(ours).dtypes == dict.fromkeys(open_source(ours).dtypes, dtype)


def test_fused_layout_is_queries_then_key_then_value_of_each_kv_head():
    theirs = tensors_of(tiny_folder("llama"))
    source = open_source(tiny_folder("llama"))
    c = source.config
    fused = source.read("layers.1.attn.qkv.kernel")
    assert fused.shape == param_shapes(c)["layers.1.attn.qkv.kernel"]
    prefix = "model.layers.1.self_attn."
    rows = {x: theirs[f"{prefix}{x}_proj.weight"].reshape(-1, c.head_dim, c.hidden_size)
            for x in "qkv"}  # fmt: skip
    for head in range(c.num_kv_heads):
        for j in range(c.group_size):
            np.testing.assert_array_equal(fused[:, head, j], rows["q"][head * c.group_size + j].T)
        np.testing.assert_array_equal(fused[:, head, -2], rows["k"][head].T)
        np.testing.assert_array_equal(fused[:, head, -1], rows["v"][head].T)
    gate_up = source.read("layers.0.mlp.gate_up.kernel")
    np.testing.assert_array_equal(gate_up[:, 0], theirs["model.layers.0.mlp.gate_proj.weight"].T)
    np.testing.assert_array_equal(gate_up[:, 1], theirs["model.layers.0.mlp.up_proj.weight"].T)


def test_sharded_folders_read_and_write(folder, tmp_path):
    whole = tensors_of(folder)
    shard(folder)
    source = open_source(folder)
    params = ((name, source.read(name)) for name in source.dtypes)
    out = tmp_path / "out"
    out.mkdir()
    write_folder(out, source.config, params, dtypes=source.dtypes, token_ids={}, shard_bytes=4000)
    assert len(list(out.glob("*.safetensors"))) > 2
    same_bits(whole, tensors_of(out))
    assert open_source(out).config == source.config


def test_single_file_needs_its_config(folder):
    assert open_source(folder / "model.safetensors").config == open_source(folder).config
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="config.json is missing"):
        open_source(folder / "model.safetensors")


def test_dtype_conversion_and_overflow(folder, tmp_path):
    params = read_params(open_source(folder), "bfloat16")
    assert {array.dtype for _, array in params} == {np.dtype(ml_dtypes.bfloat16)}
    tensors = tensors_of(folder)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * np.float32(1e6)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="final_norm.scale.*65504"):
        convert(folder, tmp_path / "half", dtype="float16", **QUIET)
    assert not (tmp_path / "half").exists()


def test_index_problems(folder):
    weight_map = shard(folder)
    index = folder / "model.safetensors.index.json"
    good = index.read_text()
    for wrong, words in (
        ({**weight_map, "model.extra": "model-00001-of-00003.safetensors"}, "model.extra"),
        ({**weight_map, "model.norm.weight": "../x.safetensors"}, "bad shard name"),
        ({**weight_map, "model.norm.weight": "absent.safetensors"}, "absent.safetensors"),
        ([], "weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(CorruptCheckpointError, match=words):
            open_source(folder)
    index.write_text(good)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CorruptCheckpointError, match="model-00002-of-00003.*missing"):
        open_source(folder)


def test_unmapped_missing_and_misshapen_tensors_are_named(folder):
    tensors = tensors_of(folder)

    def check(change, error, words):
        save_file({k: v for k, v in (tensors | change).items() if v is not None},
                  folder / "model.safetensors")  # fmt: skip
        with pytest.raises(error, match=words):
            open_source(folder)

    check({"score.weight": np.zeros(2, np.float32)}, CheckpointError, "score.weight")
    check({"vision_tower.x": np.zeros(2, np.float32)}, CheckpointError, "vision.*multimodal")
    check({"model.layers.1.mlp.up_proj.weight": None}, CorruptCheckpointError, "up_proj.*miss")
    wrong = tensors["model.layers.0.self_attn.k_proj.weight"][:-1]
    check({"model.layers.0.self_attn.k_proj.weight": np.ascontiguousarray(wrong)},
          CorruptCheckpointError, r"k_proj.weight has shape \(31, 32\), want \(32")  # fmt: skip
    check({"model.norm.weight": tensors["model.norm.weight"].astype(np.int32)},
          CheckpointError, "dtype I32")  # fmt: skip


def test_tied_head_must_equal_the_embedding(folder):
    tensors = tensors_of(folder)
    embedding = tensors["model.embed_tokens.weight"]
    harmless = {"lm_head.weight": embedding, "model.layers.0.self_attn.rotary_emb.inv_freq":
                np.ones(4, np.float32)}  # fmt: skip
    save_file(tensors | harmless, folder / "model.safetensors")
    open_source(folder)
    save_file(tensors | {"lm_head.weight": embedding * 2}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="lm_head.weight differs"):
        open_source(folder)


def test_float8_is_refused_by_name(folder):
    raw = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    entry = header["model.norm.weight"]
    entry["dtype"], entry["shape"] = "F8_E4M3", [entry["shape"][0] * 4]
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + raw[8 + length :]
    )
    with pytest.raises(JaxdecodeError, match="model.norm.weight"):
        open_source(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pth", "consolidated.ckpt",
                                  "pytorch_model.bin.index.json"])  # fmt: skip
def test_pickles_are_never_opened(name, tmp_path):
    bomb = b"cos\nsystem\n(S'touch /nonexistent/bomb'\ntR."
    (tmp_path / name).write_bytes(bomb)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(UnsafeCheckpointError, match="save_pretrained"):
            open_source(path)


def test_paths_that_hold_no_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for path, words in ((tmp_path / "absent", "absent does not exist"), (tmp_path, "no checkpoint"),
                        (tmp_path / "notes.txt", "not a checkpoint")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            open_source(path)
