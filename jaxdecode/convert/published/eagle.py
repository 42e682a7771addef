"""SafeAILab/EAGLE, 1 (and 2) and 3: a folder with the config of a Llama model of one layer.

Their copy of the target's embedding is not read: ours is the target's own. Of the draft vocabulary
they keep how far each token lies from its column (`d2t`), and which tokens have one (`t2d`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdecode.convert.published import llama
from jaxdecode.convert.published.layout import Codec, Layout, Tensors, same, turned
from jaxdecode.errors import CorruptCheckpointError
from jaxdecode.heads import eagle, eagle3

_LOCAL = (
    *("attn.qkv.kernel", "attn.o.kernel"),
    *("mlp_norm.scale", "mlp.gate_up.kernel", "mlp.down.kernel"),
)


def _head_dim(config: Mapping[str, Any]) -> int:
    width = config.get("hidden_size", 0) // max(config.get("num_attention_heads", 1), 1)
    return config.get("head_dim") or width


def _layer(prefix: str, config: Mapping[str, Any]) -> dict[str, Codec]:
    width = _head_dim(config)
    return {name.replace(".", "/"): llama.codec(name, prefix, width) for name in _LOCAL}


def _codecs1(
    shape: eagle.Shape, config: Mapping[str, Any], tensors: Tensors | None
) -> dict[str, Codec]:
    del shape, tensors
    enter = {"enter/kernel": turned("fc.weight"), "enter/bias": same("fc.bias")}
    return enter | _layer("layers.0", config)


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


def _config(shape: Any, target: Mapping[str, Any]) -> dict[str, Any]:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "_name_or_path": target.get("name"),
        **{name: target[name] for name in ("vocab_size", "hidden_size", "head_dim")},
    }
    if isinstance(shape, eagle3.Shape):
        return config | {"draft_vocab_size": shape.draft_vocab or target["vocab_size"]}
    return config | {"bias": True}


def _sizes3(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    return {"draft_vocab": config["draft_vocab_size"] if "d2t" in tensors else None}


LAYOUT = Layout(
    project="SafeAILab/EAGLE",
    kind="eagle",
    file="model.safetensors",
    matches=lambda config: config.get("num_hidden_layers") == 1,
    marks=("fc.weight", "layers.0.self_attn.q_proj.weight"),
    sizes=lambda config, tensors: {},
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
