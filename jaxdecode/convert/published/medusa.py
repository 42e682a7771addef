"""FasterDecoding/Medusa: `medusa_lm_head.safetensors`, tensors named by head and place in it."""

import re
from collections.abc import Mapping
from typing import Any

from jaxdecode.convert.published.layout import Codec, Layout, Tensors, same, stacked, turned
from jaxdecode.errors import CorruptCheckpointError, UnsupportedError
from jaxdecode.heads.medusa import Shape

_OUTPUT = re.compile(r"\d+\.\d+\.weight")


def _matches(config: Mapping[str, Any]) -> bool:
    return "medusa_num_heads" in config


def _sizes(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    own = any(_OUTPUT.fullmatch(name) for name in tensors)
    # A config may promise more heads than the file has; what counts is the file.
    found = {int(name.split(".")[0]) for name in tensors if name.split(".")[0].isdigit()}
    layers = config.get("medusa_num_layers", 1)
    return {"num_heads": len(found), "num_layers": layers, "own_head": own}


def _codecs(shape: Shape, config: Mapping[str, Any], tensors: Tensors | None) -> dict[str, Codec]:
    del config, tensors
    if shape.affine:
        raise UnsupportedError(
            "the published layout has no place for the affine maps of these heads; train heads "
            "with affine=False to write them."
        )
    heads, layers = range(shape.num_heads), range(shape.num_layers)
    codecs = {}
    for i in layers:
        kernels = [turned(f"{head}.{i}.linear.weight") for head in heads]
        codecs[f"blocks.{i}.kernel"] = stacked(kernels)
        codecs[f"blocks.{i}.bias"] = stacked([same(f"{head}.{i}.linear.bias") for head in heads])
    if shape.own_head:
        outputs = [same(f"{head}.{shape.num_layers}.weight") for head in heads]
        codecs["output.kernel"] = stacked(outputs)
    return codecs


def _target(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    first = tensors.get("0.0.linear.bias")
    if first is None:
        raise CorruptCheckpointError("0.0.linear.bias is missing: these are no Medusa heads.")
    sizes: dict[str, Any] = {"hidden_size": len(first)}
    outputs = [tensor for name, tensor in tensors.items() if _OUTPUT.fullmatch(name)]
    if outputs:
        sizes["vocab_size"] = len(outputs[0])
    return {"name": config.get("base_model_name_or_path", "unknown")} | sizes


def _config(shape: Shape, target: Mapping[str, Any], params: Tensors) -> dict[str, Any]:
    del params
    return {
        "medusa_num_heads": shape.num_heads,
        "medusa_num_layers": shape.num_layers,
        "base_model_name_or_path": target.get("name"),
    }


LAYOUT = Layout(
    project="FasterDecoding/Medusa",
    kind="medusa",
    file="medusa_lm_head.safetensors",
    matches=_matches,
    sizes=_sizes,
    codecs=_codecs,
    target=_target,
    config=_config,
)
