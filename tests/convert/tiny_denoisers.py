"""Tiny random checkpoints in the layouts of published masked and block diffusion models."""

import json

import numpy as np
from safetensors.numpy import save_file

MASK = 90
_LLADA = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
    "activation_type": "silu",
    "alibi": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 32,
    "embedding_size": 96,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": MASK,
    "max_sequence_length": 128,
    "mlp_hidden_size": 48,
    "multi_query_attention": None,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 2,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "vocab_size": 96,
    "weight_tying": False,
}
_QWEN = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "sliding_window": None,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "tie_word_embeddings": False,
    "mask_token_id": MASK,
}
CONFIGS = {
    "llada": _LLADA,
    # Every option that LLaDA's class has and we support.
    "llada_options": _LLADA
    | {
        "n_kv_heads": 2,
        "include_bias": True,
        "weight_tying": True,
        "input_emb_norm": True,
        "vocab_size": 91,
    },
    "dream": _QWEN
    | {
        "model_type": "Dream",
        "architectures": ["DreamModel"],
        "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
    },
    "fast_dllm": _QWEN
    | {
        "model_type": "Fast_dLLM_Qwen",
        "architectures": ["Fast_dLLM_QwenForCausalLM"],
        "bd_size": 4,
        "tie_word_embeddings": True,
    },
}
NAMES = tuple(CONFIGS)


def tensors(name: str) -> dict[str, np.ndarray]:
    """Random weights under their published names."""
    hf, shapes = CONFIGS[name], {}
    if hf["model_type"] == "llada":
        width, mlp = hf["d_model"], hf["mlp_hidden_size"]
        kv = width // hf["n_heads"] * hf["n_kv_heads"]
        top = "model.transformer."
        shapes = {f"{top}wte.weight": (96, width), f"{top}ln_f.weight": (width,)}
        if not hf["weight_tying"]:
            shapes[f"{top}ff_out.weight"] = (96, width)
        linears = dict(q_proj=(width, width), k_proj=(kv, width), v_proj=(kv, width),
                       attn_out=(width, width), ff_proj=(mlp, width), up_proj=(mlp, width),
                       ff_out=(width, mlp))  # fmt: skip
        biased = linears if hf["include_bias"] else ()
        layer, norms, count = f"{top}blocks.", ("attn_norm", "ff_norm"), hf["n_layers"]
    else:
        width, mlp = hf["hidden_size"], hf["intermediate_size"]
        kv = width // hf["num_attention_heads"] * hf["num_key_value_heads"]
        shapes = {"model.embed_tokens.weight": (96, width), "model.norm.weight": (width,)}
        if not hf["tie_word_embeddings"]:
            shapes["lm_head.weight"] = (96, width)
        at = "self_attn."
        biased = {f"{at}q_proj": (width, width), f"{at}k_proj": (kv, width),
                  f"{at}v_proj": (kv, width)}  # fmt: skip
        linears = biased | {f"{at}o_proj": (width, width), "mlp.gate_proj": (mlp, width),
                            "mlp.up_proj": (mlp, width), "mlp.down_proj": (width, mlp)}  # fmt: skip
        norms, count = ("input_layernorm", "post_attention_layernorm"), hf["num_hidden_layers"]
        layer = "model.layers."
    for i in range(count):
        shapes |= {f"{layer}{i}.{n}.weight": (width,) for n in norms}
        shapes |= {f"{layer}{i}.{n}.weight": shape for n, shape in linears.items()}
        shapes |= {f"{layer}{i}.{n}.bias": shape[:1] for n, shape in linears.items() if n in biased}
    rng = np.random.default_rng(len(name))
    made = {key: rng.normal(0, 0.3, shape).astype(np.float32) for key, shape in shapes.items()}
    return {key: 1 + array if "norm" in key or "ln_f" in key else array
            for key, array in made.items()}  # fmt: skip


def write(folder, name: str, **changes):
    """A checkpoint folder; a change to None takes the setting out of config.json."""
    folder.mkdir(exist_ok=True)
    config = {
        k: v for k, v in (CONFIGS[name] | changes).items() if not (k in changes and v is None)
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors(name), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
