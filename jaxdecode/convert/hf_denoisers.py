"""config.json of published masked and block diffusion models.

Dream and Fast-dLLM v2 are Qwen 2.5 with another mask; their common settings are read like Qwen's,
and here is what is theirs alone. LLaDA names everything its own way. Published files also name the
Python code that transformers would run (`auto_map`): nothing of it is ever run or written, and
`architectures` must name the class whose maths we know.
"""

import json
import math
from pathlib import Path
from typing import Any

from jaxdecode.convert.source import unsupported
from jaxdecode.errors import CheckpointError, CorruptCheckpointError
from jaxdecode.models.config import Denoiser, ModelConfig, Rope

LLADA = "llada"
# The one class of each model_type that we know; forks with other maths kept the model_type.
ARCHITECTURES = {
    LLADA: "LLaDAModelLM",
    "Dream": "DreamModel",
    "Fast_dLLM_Qwen": "Fast_dLLM_QwenForCausalLM",
}
FAMILIES = {LLADA: "llada", "Dream": "dream", "Fast_dLLM_Qwen": "fast_dllm"}
# How the tokenizers of these models write the mask token where no setting names it.
MASK_TEXTS = {LLADA: "<|mdm_mask|>", "Dream": "<|mask|>", "Fast_dLLM_Qwen": "|<MASK>|"}

# Defaults of LLaDA's configuration class, which are not those of any published checkpoint.
LLADA_DEFAULTS: dict[str, Any] = {
    "d_model": 768,
    "n_heads": 12,
    "n_kv_heads": None,
    "n_layers": 12,
    "mlp_ratio": 4,
    "mlp_hidden_size": None,
    "activation_type": "swiglu",
    "block_type": "sequential",
    "rope": False,
    "layer_norm_type": "default",
    "multi_query_attention": None,
    "input_emb_norm": False,
    "rms_norm_eps": 1e-5,
    "max_sequence_length": 1024,
    "rope_theta": 10_000.0,
    "include_qkv_bias": False,
    "include_bias": False,
    "bias_for_layer_norm": None,
    "vocab_size": 50257,
    "embedding_size": 50304,
    "weight_tying": True,
}
_QWEN_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_sliding_window": (None, False),
    "use_mrope": (None, False),
    "block_size": (None,),  # later Dream forks: blocks, and scores that are not shifted
}
# Settings that change the result and that we do not implement, with the values that mean "off".
NEUTRAL: dict[str, dict[str, tuple[Any, ...]]] = {
    LLADA: {
        "alibi": (None, False),
        "attention_layer_norm": (None, False),
        "block_group_size": (None, 1),
        "clip_qkv": (None,),
        "layer_norm_with_affine": (None, True),
        "rope_scaling": (None,),
        "scale_logits": (None, False),
        "sliding_window": (None,),
    },
    "Dream": _QWEN_NEUTRAL,
    "Fast_dLLM_Qwen": _QWEN_NEUTRAL,
}


def check(hf: dict[str, Any]) -> None:
    """Checks what is common to these models; other model types pass.

    Raises:
        UnsupportedError: another class than the one whose maths is known, or windowed layers.
        CheckpointError: nothing says which token is the mask.
    """
    model_type = hf["model_type"]
    if model_type not in ARCHITECTURES:
        return
    known = ARCHITECTURES[model_type]
    if hf.get("architectures") not in (None, [known]):
        raise unsupported("architectures", hf["architectures"], repr([known]))
    types = hf.get("layer_types")
    if types is not None and types != ["full_attention"] * len(types):
        raise unsupported("layer_types", types, "'full_attention' in every layer")
    if hf.get("mask_token_id") is None:
        raise CheckpointError(
            f"config.json: mask_token_id is missing, and no tokenizer file names a mask token "
            f"(mask_token, or {MASK_TEXTS[model_type]!r} among the added tokens); add "
            '"mask_token_id": ID to config.json.'
        )


def denoiser(values: dict[str, Any]) -> Denoiser | None:
    """How a model fills undecided slots; None for autoregressive ones."""
    model_type = values["model_type"]
    if model_type not in ARCHITECTURES:
        return None
    return Denoiser(
        mask_token=values["mask_token_id"],
        shifted=model_type != LLADA,
        block=_positive(values, "bd_size") if model_type == "Fast_dLLM_Qwen" else 0,
    )


def denoiser_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The settings that only these models have."""
    if config.denoiser is None:
        return {}
    block = {"bd_size": config.denoiser.block} if config.family == "fast_dllm" else {}
    return {"mask_token_id": config.denoiser.mask_token} | block


def read_llada(hf: dict[str, Any]) -> ModelConfig:
    """LLaDA's configuration, of which `check` has been called.

    Raises:
        UnsupportedError: a setting we do not implement.
        ValueError, TypeError: impossible values.
    """
    values = LLADA_DEFAULTS | hf
    for key, wanted in (
        ("rope", True),
        ("activation_type", "silu"),
        ("block_type", "llama"),
        ("layer_norm_type", "rms"),
    ):
        if values[key] != wanted:
            raise unsupported(key, values[key], repr(wanted))
    bias, tied = bool(values["include_bias"]), bool(values["weight_tying"])
    norm_bias = values["bias_for_layer_norm"]
    if bias if norm_bias is None else norm_bias:
        raise unsupported("bias_for_layer_norm", norm_bias, "false")
    if bias and not tied:
        raise unsupported("include_bias", True, "false, or true with weight_tying")
    sizes = {name: _positive(values, name) for name in ("d_model", "n_heads", "n_layers")}
    width, heads = sizes["d_model"], sizes["n_heads"]
    if width % heads:
        raise ValueError(f"d_model {width} is not a multiple of n_heads {heads}")
    mlp = values["mlp_hidden_size"]
    return ModelConfig(
        family=FAMILIES[LLADA],
        vocab_size=_llada_rows(values),
        num_layers=sizes["n_layers"],
        hidden_size=width,
        intermediate_size=values["mlp_ratio"] * width if mlp is None else mlp,
        num_heads=heads,
        num_kv_heads=_llada_kv_heads(values, heads),
        head_dim=width // heads,
        max_length=values["max_sequence_length"],
        norm_eps=float(values["rms_norm_eps"]),
        qkv_bias=bias or bool(values["include_qkv_bias"]),
        o_bias=bias,
        mlp_bias=bias,
        embed_scale=math.sqrt(width) if values["input_emb_norm"] else 1.0,
        query_scale=(width // heads) ** -0.5,
        tied_embeddings=tied,
        layer_windows=(0,) * sizes["n_layers"],
        rope=Rope(theta=float(values["rope_theta"])),
        denoiser=denoiser(values),
    )


def _llada_rows(values: dict[str, Any]) -> int:
    """Rows of the embedding, which may be more than there are tokens."""
    rows = values["embedding_size"]
    if rows is None:
        return values["vocab_size"]
    if rows < values["vocab_size"]:
        raise ValueError(f"embedding_size {rows} is below vocab_size {values['vocab_size']}")
    return rows


def _llada_kv_heads(values: dict[str, Any], heads: int) -> int:
    single, given = values["multi_query_attention"], values["n_kv_heads"]
    implied = 1 if single else heads
    if given is None:
        return implied
    if single is not None and given != implied:
        raise ValueError(f"n_kv_heads {given} contradicts multi_query_attention {single}")
    return given


def _positive(values: dict[str, Any], name: str) -> int:
    if type(values[name]) is not int or not 0 < values[name] < 2**31:
        raise ValueError(f"{name} is {values[name]!r}")
    return values[name]


def llada_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Writes LLaDA's config.json, every setting that its class would fill in otherwise."""
    return {
        "architectures": [ARCHITECTURES[LLADA]],
        "model_type": LLADA,
        "d_model": config.hidden_size,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "n_layers": config.num_layers,
        "mlp_hidden_size": config.intermediate_size,
        "activation_type": config.activation,
        "alibi": False,
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "embedding_dropout": 0.0,
        "embedding_size": config.vocab_size,
        "flash_attention": False,
        "include_bias": config.mlp_bias,
        "include_qkv_bias": config.qkv_bias,
        "input_emb_norm": config.embed_scale != 1.0,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "max_sequence_length": config.max_length,
        "multi_query_attention": None,
        "residual_dropout": 0.0,
        "rms_norm_eps": config.norm_eps,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": config.rope.theta,
        "scale_logits": False,
        "use_cache": False,
        "vocab_size": config.vocab_size,
        "weight_tying": config.tied_embeddings,
    } | denoiser_to_hf(config)


def with_mask_token(hf: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Adds `mask_token_id` from the tokenizer's files where config.json does not name it.

    Fast-dLLM v2 names its mask only among the added tokens of its tokenizer.

    Raises:
        CorruptCheckpointError: a tokenizer file is not what it should be.
    """
    model_type = hf.get("model_type")
    if model_type not in ARCHITECTURES or hf.get("mask_token_id") is not None:
        return hf
    settings = {
        **_read(folder / "special_tokens_map.json"),
        **_read(folder / "tokenizer_config.json"),
    }
    named = settings.get("mask_token")
    text = named.get("content") if isinstance(named, dict) else named
    ids = _added_tokens(folder, settings)
    token = ids.get(text if isinstance(text, str) else MASK_TEXTS[model_type])
    return hf if token is None else hf | {"mask_token_id": token}


def _added_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Ids of the added tokens by their text, wherever they are listed."""
    ids: dict[str, Any] = {}
    listed = _read(folder / "tokenizer.json").get("added_tokens")
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str):
            ids[entry["content"]] = entry.get("id")
    decoder = settings.get("added_tokens_decoder")
    for token, entry in decoder.items() if isinstance(decoder, dict) else ():
        if token.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            ids[entry["content"]] = int(token)
    return ids | _read(folder / "added_tokens.json")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise CorruptCheckpointError(f"{path}: expected a JSON object.")
    return content
