"""config.json of the transformers library, versions 4 and 5, to ModelConfig and back.

Defaults are those of the transformers configuration classes, because that library leaves values
equal to its defaults out of nested files. A setting that would change the maths and that our
decoder does not implement is an error, never ignored.
"""

import math
from typing import Any

from jaxdecode.convert import hf_denoisers
from jaxdecode.convert.source import check_config, unsupported
from jaxdecode.errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnsupportedError,
    near_matches,
)
from jaxdecode.models.config import ModelConfig, Rope

_COMMON: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "rope_theta": 10_000.0,
}
_QWEN = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _COMMON,
    "mistral": _COMMON
    | {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen2": _COMMON | _QWEN,
    "qwen3": _COMMON | _QWEN | {"head_dim": 128},
    "Dream": _COMMON | _QWEN,
    "Fast_dLLM_Qwen": _COMMON | _QWEN | {"bd_size": 32},
    "gemma3_text": _COMMON
    | {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
}
_FAMILIES = {"gemma3_text": "gemma3"} | hf_denoisers.FAMILIES
_LIKE_QWEN2 = ("qwen2", "dream", "fast_dllm")
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_ACTIVATION_NAMES = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}

# Settings that change the result and that we do not implement, with the values that mean "off".
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (None, 0),
    "final_logit_softcapping": (None, 0),
    "use_bidirectional_attention": (None, False),
    "is_causal": (None, True),
    "partial_rotary_factor": (None, 1),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "num_experts_per_tok": (None, 0),
    "quantization_config": (None, {}),
    "auto_map": (None, {}),
}


def config_from_hf(hf: dict[str, Any]) -> ModelConfig:
    """Reads a parsed config.json.

    Args:
        hf: the JSON object; of a multimodal Gemma 3 the text part is used.

    Raises:
        UnsupportedError: an architecture or setting we do not implement, with what is supported.
        CorruptCheckpointError: a value of the wrong type or an impossible number.
    """
    if not isinstance(hf, dict):
        raise CorruptCheckpointError(f"config.json: expected an object, got {type(hf).__name__}.")
    model_type = hf.get("model_type")
    if model_type == "gemma3" and isinstance(hf.get("text_config"), dict):
        hf = {"model_type": "gemma3_text"} | hf["text_config"]
        model_type = hf["model_type"]
    known = [*_DEFAULTS, hf_denoisers.LLADA]
    if not isinstance(model_type, str) or model_type not in known:
        raise UnsupportedError(
            f"config.json: model_type {model_type!r} is not supported; supported: "
            f"{', '.join(known)}.{near_matches(str(model_type), known)}"
        )
    for key, neutral in _neutral(model_type).items():
        if hf.get(key) not in neutral:
            raise unsupported(key, hf[key], " or ".join(map(repr, neutral)))
    hf_denoisers.check(hf)
    values = _DEFAULTS.get(model_type, {}) | hf
    try:
        llada = model_type == hf_denoisers.LLADA
        config = hf_denoisers.read_llada(hf) if llada else _build(model_type, values)
    except (TypeError, ValueError, ArithmeticError, KeyError, AttributeError) as error:
        raise CorruptCheckpointError(f"config.json: unusable values ({error}).") from error
    return check_config(config, "config.json")


def _neutral(model_type: str) -> dict[str, tuple[Any, ...]]:
    own = hf_denoisers.NEUTRAL.get(model_type)
    if own is None:
        return _NEUTRAL
    # No class of the library reads these models, so their files must name other code.
    return {key: off for key, off in _NEUTRAL.items() if key != "auto_map"} | own


def known_keys(model_type: str) -> list[str]:
    """Settings that `config_from_hf` reads for a supported model_type, sorted."""
    own = ("model_type", "layer_types", "rope_scaling", "rope_parameters")
    if model_type in hf_denoisers.ARCHITECTURES:
        own += ("architectures", "mask_token_id")
    named = (_DEFAULTS | {hf_denoisers.LLADA: hf_denoisers.LLADA_DEFAULTS})[model_type]
    return sorted({*named, *_neutral(model_type), *own})


def _build(model_type: str, values: dict[str, Any]) -> ModelConfig:
    family = _FAMILIES.get(model_type, model_type)
    qwen2 = family in _LIKE_QWEN2
    gemma = family == "gemma3"
    num_layers, num_heads = values["num_hidden_layers"], values["num_attention_heads"]
    hidden_size = values["hidden_size"]
    for name in ("num_hidden_layers", "num_attention_heads", "hidden_size"):
        if type(values[name]) is not int or not 0 < values[name] < 2**31:
            raise ValueError(f"{name} is {values[name]!r}")
    head_dim = values["head_dim"] or hidden_size // num_heads
    windows = _layer_windows(family, values)
    rope, local_rope = _ropes(values, gemma)
    query_dim = values["query_pre_attn_scalar"] if gemma else head_dim
    attention_bias = bool(values["attention_bias"])
    return ModelConfig(
        family=family,
        vocab_size=values["vocab_size"],
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=values["intermediate_size"],
        num_heads=num_heads,
        num_kv_heads=num_heads if (kv := values["num_key_value_heads"]) is None else kv,
        head_dim=head_dim,
        max_length=values["max_position_embeddings"],
        norm_eps=float(values["rms_norm_eps"]),
        norm_offset=1.0 if gemma else 0.0,
        activation=_activation(values, gemma),
        # Mistral and Qwen 2 have no such setting: never and always, whatever the file says.
        qkv_bias=qwen2 or (attention_bias and family != "mistral"),
        o_bias=attention_bias and family != "mistral" and not qwen2,
        mlp_bias=bool(values["mlp_bias"]) and family == "llama",
        qk_norm=family in ("qwen3", "gemma3"),
        post_norms=gemma,
        embed_scale=math.sqrt(hidden_size) if gemma else 1.0,
        query_scale=float(query_dim) ** -0.5,
        tied_embeddings=bool(values["tie_word_embeddings"]),
        layer_windows=windows,
        rope=rope,
        local_rope=local_rope,
        denoiser=hf_denoisers.denoiser(values),
    )


def _activation(values: dict[str, Any], gemma: bool) -> Any:
    key = "hidden_activation" if gemma else "hidden_act"
    if values[key] not in _ACTIVATIONS:
        raise unsupported(key, values[key], ", ".join(_ACTIVATIONS))
    return _ACTIVATIONS[values[key]]


def _layer_windows(family: str, values: dict[str, Any]) -> tuple[int, ...]:
    """Window per layer; transformers lets a query at p see keys with p - key < sliding_window."""
    num_layers, window = values["num_hidden_layers"], values["sliding_window"]
    if num_layers > 4096:
        raise ValueError(f"num_hidden_layers is {num_layers}")
    types = values.get("layer_types")
    if family in ("llama", "mistral"):
        local = [family == "mistral" and window is not None] * num_layers
        if types is not None and [t == "sliding_attention" for t in types] != local:
            raise unsupported("layer_types", types, f"the uniform pattern of model_type {family!r}")
    elif types is not None:
        unknown = set(types) - {"sliding_attention", "full_attention"}
        if unknown or len(types) != num_layers:
            raise unsupported(
                "layer_types", types, f"{num_layers} of 'sliding_attention' or 'full_attention'"
            )
        local = [t == "sliding_attention" for t in types]
    elif family == "gemma3":
        pattern = values["sliding_window_pattern"]
        local = [bool((i + 1) % pattern) for i in range(num_layers)]
    else:
        first = values["max_window_layers"]
        local = [bool(values["use_sliding_window"]) and i >= first for i in range(num_layers)]
    qwen = family in (*_LIKE_QWEN2, "qwen3")
    if qwen and not values["use_sliding_window"]:
        window = None
    if any(local) and (type(window) is not int or window < 1):
        if types is None and qwen:
            return (0,) * num_layers
        raise ValueError(f"sliding_window is {window!r} but layers are 'sliding_attention'")
    return tuple((window or 0) if is_local else 0 for is_local in local)


def _ropes(values: dict[str, Any], gemma: bool) -> tuple[Rope, Rope | None]:
    scaling, parameters = values.get("rope_scaling"), values.get("rope_parameters")
    theta, max_length = values["rope_theta"], values["max_position_embeddings"]
    if not gemma:
        return _rope(parameters or scaling or {}, theta, max_length), None
    parameters = parameters or {}
    if not parameters.keys() <= {"full_attention", "sliding_attention"}:
        raise unsupported("rope_parameters", parameters, "full_attention and sliding_attention")
    full = (parameters.get("full_attention") or {}) | (scaling or {})
    local = parameters.get("sliding_attention") or {}
    return (
        _rope(full, theta, max_length),
        _rope(local, values["rope_local_base_freq"], max_length),
    )


def _rope(parameters: dict[str, Any], theta: float, max_length: int) -> Rope:
    """One rotary embedding; `rope_type` is called `type` in old files."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    partial = parameters.get("partial_rotary_factor", 1)
    if partial not in (None, 1):
        raise unsupported("partial_rotary_factor", partial, "1")
    theta = float(theta if (given := parameters.get("rope_theta")) is None else given)
    if kind in ("default", None):
        return Rope(theta=theta)
    if kind == "linear":
        return Rope(theta=theta, scaling="linear", factor=float(parameters["factor"]))
    if kind == "llama3":
        original = parameters.get("original_max_position_embeddings")
        return Rope(
            theta=theta,
            scaling="llama3",
            factor=float(parameters["factor"]),
            low_freq_factor=float(parameters["low_freq_factor"]),
            high_freq_factor=float(parameters["high_freq_factor"]),
            original_max_length=max_length if original is None else original,
        )
    raise unsupported("rope type", kind, "default, linear, llama3")


_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
} | {hf_denoisers.FAMILIES[kind]: name for kind, name in hf_denoisers.ARCHITECTURES.items()}
_MODEL_TYPES = {family: model_type for model_type, family in _FAMILIES.items()}


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Writes a config.json object that transformers 4 and 5 both read.

    Raises:
        UnsupportedError: the family's transformers class cannot express this configuration.
    """
    if config.family not in _ARCHITECTURES:
        raise UnsupportedError(
            f"family {config.family!r} has no transformers class; known: {list(_ARCHITECTURES)}."
        )
    if config.family == hf_denoisers.FAMILIES[hf_denoisers.LLADA]:
        return _checked(hf_denoisers.llada_to_hf(config), config)
    hf = {
        "architectures": [_ARCHITECTURES[config.family]],
        "model_type": _MODEL_TYPES.get(config.family, config.family),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "rope_theta": config.rope.theta,
        "rope_scaling": _rope_to_hf(config.rope),
    } | _family_to_hf(config)
    return _checked(hf | hf_denoisers.denoiser_to_hf(config), config)


def _checked(hf: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    try:
        same = config_from_hf(hf) == config
    except CheckpointError:
        same = False
    if not same:
        raise UnsupportedError(
            f"{_ARCHITECTURES[config.family]} cannot express this configuration: {config}."
        )
    return hf


def _family_to_hf(config: ModelConfig) -> dict[str, Any]:
    window = max(config.layer_windows)
    activation = _ACTIVATION_NAMES[config.activation]
    if config.family == "llama":
        return {
            "hidden_act": activation,
            "attention_bias": config.qkv_bias,
            "mlp_bias": config.mlp_bias,
        }
    if config.family == "mistral":
        return {"hidden_act": activation, "sliding_window": window or None}
    layer_types = [
        "sliding_attention" if layer_window else "full_attention"
        for layer_window in config.layer_windows
    ]
    if config.family == "gemma3":
        # Squaring the square root may be off by one unit in the last place.
        scalar = round(config.query_scale**-2, 6)
        return {
            "hidden_activation": activation,
            "attention_bias": config.qkv_bias,
            "query_pre_attn_scalar": int(scalar) if scalar.is_integer() else scalar,
            "sliding_window": window or 4096,
            "layer_types": layer_types,
            "rope_local_base_freq": config.local_rope.theta if config.local_rope else None,
        }
    return {
        "hidden_act": activation,
        **({"attention_bias": config.qkv_bias} if config.family == "qwen3" else {}),
        "use_sliding_window": window > 0,
        "sliding_window": window or None,
        "max_window_layers": config.layer_windows.index(window) if window else config.num_layers,
        "layer_types": layer_types,
    }


def _rope_to_hf(rope: Rope) -> dict[str, Any] | None:
    if rope.scaling == "none":
        return None
    if rope.scaling == "linear":
        return {"rope_type": "linear", "factor": rope.factor}
    return {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_max_length,
    }
