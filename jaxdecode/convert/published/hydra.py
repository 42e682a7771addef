"""zankner/Hydra: `hydra_lm_head.safetensors`, of heads alone (mlp) and behind a layer (prefix-mlp).

Their prefix layer is a whole Llama model of one layer; its embedding is never read and stays out.
"""

import functools
from collections.abc import Mapping
from typing import Any

from jaxdecode.convert.published import llama
from jaxdecode.convert.published.layout import Codec, Layout, Tensors, same, turned
from jaxdecode.errors import CorruptCheckpointError, InputError, UnsupportedError
from jaxdecode.heads import hydra

_PREFIX = "prefix_embeding_layer"
_LAYER = f"{_PREFIX}.layers.0"
_INV_FREQ = f"{_LAYER}.self_attn.rotary_emb.inv_freq"
# Llama models of all sizes that heads were published for have heads of this width.
_HEAD_DIM = 128
_LOCAL = (
    *("attn_norm.scale", "attn.qkv.kernel", "attn.o.kernel"),
    *("mlp_norm.scale", "mlp.gate_up.kernel", "mlp.down.kernel"),
)


def _matches(config: Mapping[str, Any], *, arch: str) -> bool:
    return "hydra_num_heads" in config and config.get("hydra_head_arch", "mlp") == arch


def _sizes(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    if not config.get("grounded_heads", False):
        raise InputError("heads with grounded_heads=false are Medusa's kind, and not read here.")
    if config.get("hidden_state_offset", 0):
        raise InputError("hidden_state_offset must be 0: heads read the target's last state.")
    # A config may promise more heads than the file has; what counts is the file.
    found = {name.split(".")[1] for name in tensors if name.startswith("hydra_mlp.")}
    layers = config.get("hydra_num_layers", 1)
    return {"num_heads": len(found), "num_layers": layers, "own_head": True}


def _codecs(
    shape: hydra.Shape, config: Mapping[str, Any], tensors: Tensors | None, *, prefix: bool
) -> dict[str, Codec]:
    if not shape.own_head:
        raise UnsupportedError(
            "published Hydra heads have an output matrix each; these read the target's. Train "
            "heads with own_head=True to write them."
        )
    codecs: dict[str, Codec] = {}
    for i in range(shape.num_heads):
        for j in range(shape.num_layers):
            # Behind a prefix layer, a dropout stands before every block and the output.
            theirs = f"hydra_mlp.{i}.{2 * j + 1 if prefix else j}"
            codecs |= _linear(f"head.{i}/block.{j}", f"{theirs}.linear")
            if j == 0:
                codecs |= _linear(f"head.{i}/block.0/skip", f"{theirs}.res_connection")
        output = f"hydra_lm_head.{i}" + (".1" if prefix else "")
        codecs[f"head.{i}/output/kernel"] = same(f"{output}.weight")
        codecs[f"head.{i}/output/bias"] = same(f"{output}.bias")
    if prefix:
        codecs["prefix/norm/scale"] = same(f"{_PREFIX}.norm.weight")
        width = _head_dim(config, tensors or {})
        codecs |= {
            f"prefix/layer/{_slashed(name)}": llama.codec(name, _LAYER, width) for name in _LOCAL
        }
    return codecs


def _linear(ours: str, theirs: str) -> dict[str, Codec]:
    return {f"{ours}/kernel": turned(f"{theirs}.weight"), f"{ours}/bias": same(f"{theirs}.bias")}


def _slashed(name: str) -> str:
    return name.replace(".", "/")


def _head_dim(config: Mapping[str, Any], tensors: Tensors) -> int:
    if _INV_FREQ in tensors:
        return 2 * len(tensors[_INV_FREQ])
    return config.get("head_dim", _HEAD_DIM)


def _ignored(name: str) -> bool:
    return name in (f"{_PREFIX}.embed_tokens.weight", _INV_FREQ)


def _target(config: Mapping[str, Any], tensors: Tensors, *, prefix: bool) -> dict[str, Any]:
    output = tensors.get("hydra_lm_head.0" + (".1" if prefix else "") + ".weight")
    if output is None:
        raise CorruptCheckpointError("hydra_lm_head.0 is missing: these are no Hydra heads.")
    sizes = {"vocab_size": len(output), "hidden_size": output.shape[1]}
    if prefix:
        sizes["head_dim"] = _head_dim(config, tensors)
    return {"name": config.get("base_model_name_or_path", "unknown")} | sizes


def _config(
    shape: hydra.Shape, target: Mapping[str, Any], params: Tensors, *, arch: str
) -> dict[str, Any]:
    del params
    config = {
        "hydra_num_heads": shape.num_heads,
        "hydra_num_layers": shape.num_layers,
        "hydra_head_arch": arch,
        "grounded_heads": True,
        "hidden_state_offset": 0,
        "base_model_name_or_path": target.get("name"),
    }
    # Not a field of theirs: tells how many heads the rows of a projection are.
    known = arch == "prefix-mlp" and "head_dim" in target
    return config | ({"head_dim": target["head_dim"]} if known else {})


def _layout(project: str, kind: str, arch: str) -> Layout:
    prefix = arch == "prefix-mlp"
    return Layout(
        project=project,
        kind=kind,
        file="hydra_lm_head.safetensors",
        matches=functools.partial(_matches, arch=arch),
        sizes=_sizes,
        codecs=functools.partial(_codecs, prefix=prefix),
        target=functools.partial(_target, prefix=prefix),
        config=functools.partial(_config, arch=arch),
        ignored=_ignored,
    )


LAYOUT = _layout("zankner/Hydra", "hydra", "mlp")
PREFIX = _layout("zankner/Hydra prefix-mlp", "hydra_pp", "prefix-mlp")
