"""Writes small GGUF files from Hugging Face tensors, as llama.cpp's converter would."""

import json
import re

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.golden.corpus import tiny_folder

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
                 "gemma3_text": "gemma3"}  # fmt: skip
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def tiny_hf(name):
    """config.json (transformers 4 keys) and tensors of a tiny golden model."""
    folder = tiny_folder(name)
    return json.loads((folder / "config_v4.json").read_text()), load_file(
        folder / "model.safetensors"
    )


def gguf_name(name, gemma):
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        return NAMES[name]
    layer, local, suffix = match.groups()
    return f"blk.{layer}.{(LAYER | (GEMMA if gemma else {}))[local]}.{suffix}"


def interleave(array, heads):
    """The converter's permutation of query and key rows."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def write_gguf(path, hf, tensors, kind="F32", fields=None, extra=None, alignment=None):
    """Writes a file; 2-D tensors whose rows fit the block are stored as `kind`.

    Returns the float32 tensors the file stands for, under their Hugging Face names.
    """
    arch = ARCHITECTURES[hf["model_type"]]
    kind = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, arch)
    _write_metadata(writer, hf)
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, value in (fields or {}).items():
        writer.add_key_value(key, *value)
    meant = {}
    for name, array in tensors.items():
        gemma = arch == "gemma3"
        if gemma and name.endswith("norm.weight"):
            array = array + np.float32(1)
            meant[name] = array - np.float32(1)
            writer.add_tensor(gguf_name(name, gemma), array)
            continue
        heads = 0
        if arch == "llama" and "q_proj" in name:
            heads = hf["num_attention_heads"]
        elif arch == "llama" and "k_proj" in name:
            heads = hf.get("num_key_value_heads", hf["num_attention_heads"])
        stored = interleave(array, heads) if heads else array
        if array.ndim == 2 and array.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            quantized = gguf.quants.quantize(stored, kind)
            writer.add_tensor(gguf_name(name, gemma), quantized, raw_dtype=kind)
            again = gguf.quants.dequantize(quantized, kind)
            meant[name] = _deinterleave(again, heads) if heads else again
        else:
            writer.add_tensor(gguf_name(name, gemma), stored.astype(np.float32))
            meant[name] = array
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def _deinterleave(array, heads):
    order = interleave(np.arange(array.shape[0]), heads)
    out = np.empty_like(array)
    out[order] = array
    return out


def _write_metadata(writer, hf):
    writer.add_context_length(hf["max_position_embeddings"])
    writer.add_embedding_length(hf["hidden_size"])
    writer.add_block_count(hf["num_hidden_layers"])
    writer.add_feed_forward_length(hf["intermediate_size"])
    writer.add_head_count(hf["num_attention_heads"])
    writer.add_head_count_kv(hf.get("num_key_value_heads") or hf["num_attention_heads"])
    writer.add_layer_norm_rms_eps(hf["rms_norm_eps"])
    if hf.get("head_dim"):
        writer.add_key_length(hf["head_dim"])
        writer.add_value_length(hf["head_dim"])
    if hf.get("rope_theta"):
        writer.add_rope_freq_base(hf["rope_theta"])
    scaling = hf.get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type")) == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if hf["model_type"] == "mistral" or hf["model_type"] == "gemma3_text":
        writer.add_sliding_window(hf["sliding_window"])
