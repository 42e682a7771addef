import dataclasses
import time

import gguf
import numpy as np
import pytest

from jaxdecode.convert import names
from jaxdecode.convert.gguf import GgufStore, llama3_factors
from jaxdecode.convert.gguf_header import read_header
from jaxdecode.convert.hf_config import config_from_hf
from jaxdecode.convert.open import open_source
from jaxdecode.convert.pipeline import convert, inspect, verify
from jaxdecode.errors import CheckpointError, CorruptCheckpointError, UnsupportedError
from tests.convert.gguf_files import tiny_hf, write_gguf

PLAIN = ("llama_plain", "llama_linear", "mistral", "qwen2", "qwen3", "gemma3")
U32, F32 = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.FLOAT32


class Meant:
    """The tensors a file stands for, as names.py wants them."""

    def __init__(self, tensors):
        self.tensors = tensors

    def read(self, name, box):
        assert box is None
        return self.tensors[name]


def fields_for(name):
    return {"gemma3": {"gemma3.rope.freq_base_swa": (100.0, F32),
                       "gemma3.attention.sliding_window_pattern": (3, U32)}}.get(name)  # fmt: skip


def hf_for(name):
    hf, tensors = tiny_hf(name)
    if name == "gemma3":
        hf["query_pre_attn_scalar"] = 16  # the only value such a file can mean: the head width
    return hf, tensors


def check(path, hf, meant):
    source = open_source(path)
    config = config_from_hf(hf)
    assert dataclasses.replace(source.config, layer_windows=()) == dataclasses.replace(
        config, layer_windows=()
    )
    assert source.config.layer_windows == config.layer_windows
    for name in source.dtypes:
        expected = names.read_param(config, Meant(meant), name)
        got = source.read(name)
        assert got.tobytes() == expected.astype(got.dtype).tobytes(), name
    return source


@pytest.mark.parametrize("name", PLAIN)
def test_every_family_gives_the_values_and_config_of_its_hf_folder(name, tmp_path):
    hf, tensors = hf_for(name)
    meant = write_gguf(tmp_path / "m.gguf", hf, tensors, fields=fields_for(name))
    if name != "gemma3":  # there, adding and taking away 1 rounds
        assert all(np.array_equal(meant[k], tensors[k]) for k in tensors)
    check(tmp_path / "m.gguf", hf, meant)
    assert verify(tmp_path / "m.gguf")["kind"] == "gguf"


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16"])
def test_quantized_types_read_as_the_values_they_stand_for(kind, tmp_path):
    hf, tensors = hf_for("llama_plain")
    meant = write_gguf(tmp_path / "m.gguf", hf, tensors, kind=kind)
    source = check(tmp_path / "m.gguf", hf, meant)
    assert not np.array_equal(meant["model.embed_tokens.weight"],
                              tensors["model.embed_tokens.weight"])  # fmt: skip
    wanted = {"F16": "float16", "BF16": "bfloat16"}.get(kind, "float32")
    assert source.dtypes["embed.embedding"] == wanted
    assert inspect(tmp_path / "m.gguf")["quantization"][kind] > 5
    assert convert(tmp_path / "m.gguf", tmp_path / "ours", progress=False).is_dir()


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants(kind, tmp_path):
    kind = gguf.GGMLQuantizationType[kind]
    block, width = gguf.GGML_QUANT_SIZES[kind]
    rows = np.random.default_rng(0).integers(0, 60, (5000, width), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "qwen2")
    writer.add_tensor("token_embd.weight", rows, raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file,
                  writer.write_tensors_to_file, writer.close):  # fmt: skip
        write()
    hf = {"model_type": "qwen2", "num_attention_heads": 1}
    store = GgufStore(tmp_path / "k.gguf", read_header(tmp_path / "k.gguf"), hf)
    got = store.read("model.embed_tokens.weight")
    assert got.shape == (5000, block) and got.dtype == np.float32
    np.testing.assert_array_equal(got, gguf.quants.dequantize(rows, kind))
    assert np.unique(got).size > 100


def test_other_quantizations_are_refused_by_name(tmp_path):
    hf, tensors = hf_for("llama_plain")
    write_gguf(tmp_path / "m.gguf", hf, tensors, extra={"blk.0.x.weight": np.zeros(4, np.int8)})
    with pytest.raises(UnsupportedError, match=r"blk.0.x.weight has type I8.*Q4_1"):
        open_source(tmp_path / "m.gguf")


def test_header_agrees_with_the_package_and_is_faster(tmp_path):
    hf, tensors = hf_for("llama_plain")
    words = [f"tökén{i}" for i in range(30000)]
    fields = {"test.flag": (True, gguf.GGUFValueType.BOOL), "test.real": (0.25, F32)}
    path = tmp_path / "m.gguf"
    write_gguf(path, hf, tensors, alignment=64, fields=fields | {
        "tokenizer.ggml.tokens": (words, gguf.GGUFValueType.ARRAY),
        "tokenizer.ggml.scores": ([0.5, -1.0], gguf.GGUFValueType.ARRAY),
    })  # fmt: skip
    start = time.perf_counter()
    header = read_header(path)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    reader = gguf.GGUFReader(path)
    theirs = time.perf_counter() - start
    assert ours < theirs / 3
    assert header.fields == {
        k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")
    }
    assert list(header.tensors) == [t.name for t in reader.tensors]
    for t in reader.tensors:
        info = header.tensors[t.name]
        assert (info.kind, info.offset, info.num_bytes) == (t.tensor_type, t.data_offset, t.n_bytes)
        assert info.shape == tuple(reversed(t.shape.tolist()))


def test_llama3_rope_is_recognised_from_its_frequency_factors(tmp_path):
    hf, tensors = hf_for("llama")
    hf["max_position_embeddings"] = 128
    factors = llama3_factors(theta=1000.0, head_dim=8, factor=8.0, low=1.0, high=4.0, original=64)
    assert factors.min() == 1.0 and factors.max() == 8.0 and np.unique(factors).size > 2
    extra = {"rope_freqs.weight": factors.astype(np.float32)}
    told = {"llama.rope.scaling.original_context_length": (64, U32)}
    meant = write_gguf(tmp_path / "told.gguf", hf, tensors, fields=told, extra=extra)
    check(tmp_path / "told.gguf", hf, meant)
    write_gguf(tmp_path / "untold.gguf", hf, tensors, extra=extra)
    with pytest.raises(UnsupportedError, match="rope_freqs.weight.*Llama 3"):
        open_source(tmp_path / "untold.gguf")


def test_gemma_without_the_newer_keys_means_every_sixth_layer_global(tmp_path):
    hf, tensors = hf_for("gemma3")
    write_gguf(tmp_path / "m.gguf", hf, tensors)
    config = open_source(tmp_path / "m.gguf").config
    assert config.layer_windows == (6, 6, 6, 6, 6, 0, 6)
    assert config.local_rope.theta == 10_000.0


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"llama.expert_count": (8, U32)}, UnsupportedError, "expert_count"),
        ({"llama.final_logit_softcapping": (30.0, F32)}, UnsupportedError, "softcapping"),
        ({"llama.rope.dimension_count": (4, U32)}, UnsupportedError, "dimension_count"),
        (
            {"llama.rope.scaling.type": ("yarn", gguf.GGUFValueType.STRING)},
            UnsupportedError,
            "yarn",
        ),
    ],
)
def test_metadata_that_would_change_the_result_is_refused(fields, error, words, tmp_path):
    hf, tensors = hf_for("llama_plain")
    write_gguf(tmp_path / "m.gguf", hf, tensors, fields=fields)
    with pytest.raises(error, match=words):
        open_source(tmp_path / "m.gguf")


def test_unmapped_missing_and_misshapen_tensors_are_named(tmp_path):
    hf, tensors = hf_for("llama_plain")
    path = tmp_path / "m.gguf"
    write_gguf(path, hf, tensors, extra={"blk.0.attn_q_norm.weight": np.ones(8, np.float32)})
    with pytest.raises(CheckpointError, match="q_norm.*no place in a llama model"):
        open_source(path)
    write_gguf(path, hf, {k: v for k, v in tensors.items() if "1.mlp.up_proj.weight" not in k})
    with pytest.raises(CorruptCheckpointError, match="layers.1.mlp.up_proj.weight.*missing"):
        open_source(path)
    cut = tensors | {"model.norm.weight": np.ones(31, np.float32)}
    write_gguf(path, hf, cut)
    with pytest.raises(
        CorruptCheckpointError, match=r"norm.weight has shape \(31,\), want \(32,\)"
    ):
        open_source(path)


def test_unknown_architecture(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file,
                  writer.write_tensors_to_file, writer.close):  # fmt: skip
        write()
    with pytest.raises(UnsupportedError, match="'mamba' is not supported; supported: llama"):
        open_source(tmp_path / "m.gguf")
