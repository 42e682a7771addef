import dataclasses
import json

import pytest

from jaxdecode.convert.hf_config import config_from_hf, config_to_hf
from jaxdecode.errors import CheckpointError, CorruptCheckpointError, UnsupportedError
from jaxdecode.models.config import Rope
from tests.convert import tiny_denoisers
from tests.golden.corpus import TINY, tiny_folder

BASE = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": 128}  # fmt: skip


def stored(name, file):
    return json.loads((tiny_folder(name) / file).read_text())


@pytest.mark.parametrize("name", TINY)
def test_transformers_4_and_5_files_mean_the_same(name):
    assert config_from_hf(stored(name, "config.json")) == config_from_hf(
        stored(name, "config_v4.json")
    )


@pytest.mark.parametrize("name", [*TINY, *tiny_denoisers.NAMES])
def test_round_trip(name):
    given = tiny_denoisers.CONFIGS.get(name)
    config = config_from_hf(given or stored(name, "config.json"))
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config)))) == config


def test_values_that_are_left_out_are_those_of_transformers():
    llama = config_from_hf({"model_type": "llama"})
    assert (llama.hidden_size, llama.num_layers, llama.num_kv_heads) == (4096, 32, 32)
    assert (llama.norm_eps, llama.max_length, llama.tied_embeddings) == (1e-6, 2048, False)
    mistral = config_from_hf({"model_type": "mistral"})
    assert (mistral.num_kv_heads, set(mistral.layer_windows)) == (8, {4096})
    assert set(config_from_hf({"model_type": "qwen2"}).layer_windows) == {0}
    assert config_from_hf({"model_type": "qwen3", **BASE, "num_key_value_heads": 2}).head_dim == 128
    gemma = config_from_hf({"model_type": "gemma3_text"})
    assert gemma.rope == Rope(theta=1e6)
    assert gemma.local_rope == Rope(theta=1e4)
    assert gemma.layer_windows[:7] == (4096,) * 5 + (0, 4096)
    assert gemma.tied_embeddings
    assert gemma.embed_scale == 2304**0.5


def test_multimodal_gemma_gives_its_text_model():
    text = {"hidden_size": 64, "num_hidden_layers": 2}
    outer = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 9}}
    assert config_from_hf(outer) == config_from_hf({"model_type": "gemma3_text", **text})


def test_biases():
    llama = config_from_hf({"model_type": "llama", **BASE, "attention_bias": True})
    assert (llama.qkv_bias, llama.o_bias) == (True, True)
    qwen2 = config_from_hf({"model_type": "qwen2", **BASE, "num_key_value_heads": 4})
    assert (qwen2.qkv_bias, qwen2.o_bias) == (True, False)


def test_mistral_without_window():
    config = config_from_hf({"model_type": "mistral", **BASE, "num_key_value_heads": 4,
                             "sliding_window": None})  # fmt: skip
    assert config.layer_windows == (0,) * 4


def test_llama3_rope_defaults_to_the_context_length():
    rope = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
    config = config_from_hf({"model_type": "llama", **BASE, "rope_scaling": rope})
    assert config.rope.original_max_length == 128


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "lama"}, "'lama' is not supported; supported: llama.*Did you mean 'llama'"),
        ({"model_type": None}, "not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "yarn.*default, linear, llama3"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, "dynamic"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping.*30.0"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"hidden_act": "relu"}, "hidden_act.*relu.*silu"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_what_would_change_the_result_is_refused(change, words):
    with pytest.raises(UnsupportedError, match=words):
        config_from_hf({"model_type": "llama", **BASE} | change)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "64"},
        {"hidden_size": -1},
        {"num_hidden_layers": 2**40},
        {"num_hidden_layers": 10**6},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"rms_norm_eps": "small"},
        {"rms_norm_eps": float("nan")},
        {"rope_theta": 0},
        {"rope_scaling": {"rope_type": "linear"}},
        {"rope_scaling": [1]},
        {"vocab_size": 1.5},
        {"hidden_act": []},
    ],
)
def test_impossible_values_are_typed_errors(change):
    with pytest.raises((CheckpointError, UnsupportedError)):
        config_from_hf({"model_type": "llama", **BASE} | change)


def test_not_an_object():
    with pytest.raises(CorruptCheckpointError):
        config_from_hf([])


def test_inexpressible_configurations_are_refused():
    config = config_from_hf({"model_type": "llama", **BASE})
    with pytest.raises(UnsupportedError, match="cannot express"):
        config_to_hf(dataclasses.replace(config, qk_norm=True))
    with pytest.raises(UnsupportedError, match="cannot express"):
        config_to_hf(dataclasses.replace(config, layer_windows=(8, 0, 8, 0)))
