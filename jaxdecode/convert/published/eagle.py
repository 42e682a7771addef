"""SafeAILab/EAGLE, 1 (and 2) and 3: a folder with the config of a Llama model of one layer.

Their copy of the target's embedding is not read: ours is the target's own. Of the draft vocabulary
they keep how far each token lies from its column (`d2t`), and which tokens have one (`t2d`). The
layer's rotary base, norms and biases are those of their config, whatever the target's are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdecode.convert.published import llama
from jaxdecode.convert.published.layout import Codec, Layout, Tensors, same, turned
from jaxdecode.errors import CorruptCheckpointError, UnsupportedError
from jaxdecode.heads import eagle, eagle3

_LOCAL = (
    *("attn.qkv.kernel", "attn.o.kernel"),
    *("mlp_norm.scale", "mlp.gate_up.kernel", "mlp.down.kernel"),
)


def _head_dim(config: Mapping[str, Any]) -> int:
    width = config.get("hidden_size", 0) // max(config.get("num_attention_heads", 1), 1)
    return config.get("head_dim") or width


def _layer(
    prefix: str, config: Mapping[str, Any], names: tuple[str, ...] = _LOCAL
) -> dict[str, Codec]:
    width = _head_dim(config)
    return {name.replace(".", "/"): llama.codec(name, prefix, width) for name in names}


def _codecs1(
    shape: eagle.Shape, config: Mapping[str, Any], tensors: Tensors | None
) -> dict[str, Codec]:
    del tensors
    codecs = {"enter/kernel": turned("fc.weight")} | _layer("layers.0", config)
    if shape.enter_bias:
        codecs["enter/bias"] = same("fc.bias")
    if config.get("qkv_bias"):
        codecs |= _layer("layers.0", config, ("attn.qkv.bias",))
    return codecs


def _codecs3(
    shape: eagle3.Shape, config: Mapping[str, Any], tensors: Tensors | None
) -> dict[str, Codec]:
    del tensors
    codecs = _layer("midlayer", config) | {
        "fuse/kernel": turned("fc.weight"),
        "token_norm/scale": same("midlayer.input_layernorm.weight"),
        "feature_norm/scale": same("midlayer.hidden_norm.weight"),
        "norm/scale": same("norm.weight"),
        "head/kernel": same("lm_head.weight"),
    }
    if shape.draft_vocab is not None:
        codecs["tokens"] = _columns(config["vocab_size"])
    return codecs


def _columns(vocab_size: int) -> Codec:
    """The draft vocabulary."""

    def join(arrays: list[np.ndarray]) -> np.ndarray:
        offsets, has = arrays
        tokens = offsets + np.arange(len(offsets))
        if not np.array_equal(np.flatnonzero(has), np.sort(tokens)):
            raise CorruptCheckpointError("d2t and t2d do not name the same tokens.")
        return tokens.astype(np.int32)

    def split(tokens: np.ndarray) -> list[np.ndarray]:
        has = np.zeros(vocab_size, bool)
        has[tokens] = True
        return [tokens.astype(np.int64) - np.arange(len(tokens)), has]

    return Codec(("d2t", "t2d"), join, split)


def _target(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    del tensors
    return {
        "name": config.get("_name_or_path") or "unknown",
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "head_dim": _head_dim(config),
    }


def _config(shape: Any, target: Mapping[str, Any], params: Tensors) -> dict[str, Any]:
    """The config of heads that were trained here: what the authors' code builds their layer by."""
    rope_theta, norm_eps = _settings(shape, target)
    _, num_kv_heads, group, head_dim = params["attn/qkv/kernel"].shape
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "_name_or_path": target.get("name"),
        "vocab_size": target["vocab_size"],
        "hidden_size": target["hidden_size"],
        "intermediate_size": params["mlp/gate_up/kernel"].shape[-1],
        "num_attention_heads": num_kv_heads * (group - 2),
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": norm_eps,
        "rope_theta": rope_theta,
    }
    if isinstance(shape, eagle3.Shape):
        return config | {"draft_vocab_size": shape.draft_vocab or target["vocab_size"]}
    return config | {"bias": shape.enter_bias, "qkv_bias": "attn/qkv/bias" in params}


def _settings(shape: Any, target: Mapping[str, Any]) -> tuple[float, float]:
    """Rotary base and epsilon of the norms, of a layer that is a Llama model's.

    Raises:
        UnsupportedError: it is not, or the heads do not say.
    """
    layer = target.get("layer")
    if layer is None:
        raise UnsupportedError(
            "these heads do not say how their layer rotates and normalises, which the published "
            "config must: an earlier version saved them. Heads that are trained now say it."
        )
    known = {"norm_offset": 0.0, "activation": "silu", "query_scale": target["head_dim"] ** -0.5}
    if shape.rope_theta is None:
        known["rope_scaling"] = "none"
    for name, wanted in known.items():
        if layer.get(name) != wanted:
            raise UnsupportedError(
                f"SafeAILab/EAGLE's layout holds layers with {name} {wanted}; that of these heads "
                f"has {layer.get(name)}."
            )
    taps = getattr(shape, "taps", None)
    if taps is not None and taps != eagle3.layers_of(eagle3.Shape(), target["num_layers"]):
        raise UnsupportedError(f"SafeAILab/EAGLE's layout cannot say which layers are read: {taps}")
    return shape.rope_theta or layer["rope_theta"], shape.norm_eps or layer["norm_eps"]


def _layer_shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """What their layer is; where a config says nothing, what a Llama model's config means by it.

    Raises:
        UnsupportedError: its positions are stretched.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UnsupportedError(
            f"EAGLE heads with a RoPE of type {kind!r} are not read; only plain."
        )
    return {
        "rope_theta": rope.get("rope_theta") or config.get("rope_theta", 10_000.0),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "qkv_bias": False,
        "qk_norm": False,
    }


def _sizes1(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    del tensors
    own = {"qkv_bias": bool(config.get("qkv_bias")), "enter_bias": bool(config.get("bias", True))}
    return _layer_shape(config) | own


def _sizes3(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    drafts = config["draft_vocab_size"] if "d2t" in tensors else None
    return _layer_shape(config) | {"draft_vocab": drafts}


LAYOUT = Layout(
    project="SafeAILab/EAGLE",
    kind="eagle",
    file="model.safetensors",
    matches=lambda config: config.get("num_hidden_layers") == 1,
    marks=("fc.weight", "layers.0.self_attn.q_proj.weight"),
    sizes=_sizes1,
    codecs=_codecs1,
    target=_target,
    config=_config,
    ignored=lambda name: name == "embed_tokens.weight",
)
THIRD = Layout(
    project="SafeAILab/EAGLE-3",
    kind="eagle3",
    file="model.safetensors",
    matches=lambda config: "draft_vocab_size" in config,
    marks=("fc.weight", "midlayer.hidden_norm.weight"),
    sizes=_sizes3,
    codecs=_codecs3,
    target=_target,
    config=_config,
    ignored=lambda name: name == "embed_tokens.weight",
)
