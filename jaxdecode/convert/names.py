"""Which Hugging Face tensors make up each of our parameters, and how.

Our query, key and value projections are one array grouped by KV head, gate and up are one array,
and both are `[in, out]` where theirs are `[out, in]`. Nothing else differs. All transforms only
move values, so both directions are bit-exact.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxdecode.convert.source import DTYPES, Box, TensorStore
from jaxdecode.dist import axes
from jaxdecode.errors import CheckpointError, CorruptCheckpointError
from jaxdecode.models.config import ModelConfig, param_shapes


class Transform(NamedTuple):
    """How one of our arrays is made from theirs and taken apart again.

    Attributes:
        shapes: (config, our shape) -> shapes of their tensors.
        join: (config, their arrays) -> our array.
        split: (config, our array) -> their arrays.
        boxes: (config, axis that devices split ours on, part of it) -> boxes of their tensors that
            join to that part.
    """

    shapes: Callable[[ModelConfig, tuple[int, ...]], list[tuple[int, ...]]]
    join: Callable[[ModelConfig, list[np.ndarray]], np.ndarray]
    split: Callable[[ModelConfig, np.ndarray], list[np.ndarray]]
    boxes: Callable[[ModelConfig, int, slice], list[Box]]


def _qkv_shapes(config: ModelConfig, ours: tuple[int, ...]) -> list[tuple[int, ...]]:
    # A kernel has one dimension (hidden) before the three of a bias; theirs has it last.
    inputs = ours[:-3]
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    return [(count * config.head_dim, *inputs) for count in heads]


def _qkv_join(config: ModelConfig, arrays: list[np.ndarray]) -> np.ndarray:
    dim = config.head_dim
    kv = len(arrays[1]) // dim
    parts = [a.reshape(kv, -1, dim, *a.shape[1:]) for a in arrays]
    return _inputs_first(np.concatenate(parts, axis=1), len(parts[0].shape) == 4)


def _qkv_split(config: ModelConfig, array: np.ndarray) -> list[np.ndarray]:
    group = config.group_size
    theirs = np.moveaxis(array, 0, -1) if array.ndim == 4 else array
    parts = (theirs[:, :group], theirs[:, group : group + 1], theirs[:, group + 1 :])
    return [part.reshape(-1, *part.shape[3:]) for part in parts]


def _qkv_boxes(config: ModelConfig, axis: int, part: slice) -> list[Box]:
    del axis
    widths = [count * config.head_dim for count in (config.group_size, 1, 1)]
    return [(slice(part.start * width, part.stop * width),) for width in widths]


def _pair_shapes(config: ModelConfig, ours: tuple[int, ...]) -> list[tuple[int, ...]]:
    del config
    return [(ours[-1], *ours[:-2])] * 2


def _pair_join(config: ModelConfig, arrays: list[np.ndarray]) -> np.ndarray:
    del config
    return _inputs_first(np.stack(arrays), arrays[0].ndim == 2)


def _pair_split(config: ModelConfig, array: np.ndarray) -> list[np.ndarray]:
    del config
    return list(np.moveaxis(array, 0, -1) if array.ndim == 3 else array)


def _inputs_first(array: np.ndarray, has_inputs: bool) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array, -1, 0)) if has_inputs else array


COPY = Transform(
    shapes=lambda _, ours: [ours],
    join=lambda _, arrays: arrays[0],
    split=lambda _, array: [array],
    boxes=lambda _, axis, part: [(slice(None),) * axis + (part,)],
)
QKV = Transform(_qkv_shapes, _qkv_join, _qkv_split, _qkv_boxes)
PAIR = Transform(_pair_shapes, _pair_join, _pair_split, lambda _, __, part: [(part,)] * 2)

Rule = tuple[Transform, tuple[str, ...]]

_QKV_NAMES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_PAIR_NAMES = ("mlp.gate_proj", "mlp.up_proj")


def _named(names: tuple[str, ...], suffix: str) -> tuple[str, ...]:
    return tuple(f"{name}.{suffix}" for name in names)


_MODEL: dict[str, Rule] = {
    "embed.embedding": (COPY, ("model.embed_tokens.weight",)),
    "final_norm.scale": (COPY, ("model.norm.weight",)),
    "head.kernel": (COPY, ("lm_head.weight",)),
}
_LLADA_MODEL: dict[str, Rule] = {
    "embed.embedding": (COPY, ("model.transformer.wte.weight",)),
    "final_norm.scale": (COPY, ("model.transformer.ln_f.weight",)),
    "head.kernel": (COPY, ("model.transformer.ff_out.weight",)),
}
_LAYER: dict[str, Rule] = {
    "attn_norm.scale": (COPY, ("input_layernorm.weight",)),
    "attn.qkv.kernel": (QKV, _named(_QKV_NAMES, "weight")),
    "attn.qkv.bias": (QKV, _named(_QKV_NAMES, "bias")),
    "attn.q_norm.scale": (COPY, ("self_attn.q_norm.weight",)),
    "attn.k_norm.scale": (COPY, ("self_attn.k_norm.weight",)),
    "attn.o.kernel": (COPY, ("self_attn.o_proj.weight",)),
    "attn.o.bias": (COPY, ("self_attn.o_proj.bias",)),
    "mlp.gate_up.kernel": (PAIR, _named(_PAIR_NAMES, "weight")),
    "mlp.gate_up.bias": (PAIR, _named(_PAIR_NAMES, "bias")),
    "mlp.down.kernel": (COPY, ("mlp.down_proj.weight",)),
    "mlp.down.bias": (COPY, ("mlp.down_proj.bias",)),
}
# The same Hugging Face name means another norm where there are norms after the blocks too.
_PLAIN_NORMS: dict[str, Rule] = {
    "mlp_norm.scale": (COPY, ("post_attention_layernorm.weight",)),
}
_SANDWICH_NORMS: dict[str, Rule] = {
    "attn_post_norm.scale": (COPY, ("post_attention_layernorm.weight",)),
    "mlp_norm.scale": (COPY, ("pre_feedforward_layernorm.weight",)),
    "mlp_post_norm.scale": (COPY, ("post_feedforward_layernorm.weight",)),
}
# `ff_proj` goes through the nonlinearity, `up_proj` does not.
_LLADA_QKV, _LLADA_PAIR = ("q_proj", "k_proj", "v_proj"), ("ff_proj", "up_proj")
_LLADA_LAYER: dict[str, Rule] = {
    "attn_norm.scale": (COPY, ("attn_norm.weight",)),
    "attn.qkv.kernel": (QKV, _named(_LLADA_QKV, "weight")),
    "attn.qkv.bias": (QKV, _named(_LLADA_QKV, "bias")),
    "attn.o.kernel": (COPY, ("attn_out.weight",)),
    "attn.o.bias": (COPY, ("attn_out.bias",)),
    "mlp_norm.scale": (COPY, ("ff_norm.weight",)),
    "mlp.gate_up.kernel": (PAIR, _named(_LLADA_PAIR, "weight")),
    "mlp.gate_up.bias": (PAIR, _named(_LLADA_PAIR, "bias")),
    "mlp.down.kernel": (COPY, ("ff_out.weight",)),
    "mlp.down.bias": (COPY, ("ff_out.bias",)),
}
FAMILY_LAYER: dict[str, dict[str, Rule]] = {
    "llama": _LAYER | _PLAIN_NORMS,
    "mistral": _LAYER | _PLAIN_NORMS,
    "qwen2": _LAYER | _PLAIN_NORMS,
    "qwen3": _LAYER | _PLAIN_NORMS,
    "gemma3": _LAYER | _SANDWICH_NORMS,
    "llada": _LLADA_LAYER,
    "dream": _LAYER | _PLAIN_NORMS,
    "fast_dllm": _LAYER | _PLAIN_NORMS,
}
# Names outside the layers, and what stands before a layer's number, where they are not the usual.
_FAMILY_MODEL = {"llada": _LLADA_MODEL}
_FAMILY_PREFIX = {"llada": "model.transformer.blocks"}


def rule(config: ModelConfig, name: str) -> Rule:
    """Returns the transform of one of our parameters and the full Hugging Face names it needs."""
    whole = _FAMILY_MODEL.get(config.family, _MODEL)
    if name in whole:
        return whole[name]
    _, layer, local = name.split(".", 2)
    prefix = _FAMILY_PREFIX.get(config.family, "model.layers")
    transform, names = FAMILY_LAYER[config.family][local]
    return transform, tuple(f"{prefix}.{layer}.{theirs}" for theirs in names)


def check_tensors(config: ModelConfig, store: TensorStore, where: str) -> None:
    """Checks that every tensor of the source is used, present and of the right shape.

    Raises:
        CheckpointError: a source tensor has no place in this model; it is named.
        CorruptCheckpointError: a tensor is missing or its shape does not fit the configuration.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    for name, shape in param_shapes(config).items():
        transform, theirs = rule(config, name)
        wanted |= zip(theirs, transform.shapes(config, shape), strict=True)
    unmapped = [n for n in store.shapes if n not in wanted and not _harmless(config, store, n)]
    if unmapped:
        raise CheckpointError(_unmapped_message(unmapped, config, where))
    missing = [name for name in wanted if name not in store.shapes]
    if missing:
        raise CorruptCheckpointError(f"{where}: {_some(missing)} missing.")
    for name, shape in wanted.items():
        if store.shapes[name] != shape:
            raise CorruptCheckpointError(
                f"{where}: tensor {name} has shape {store.shapes[name]}, want {shape}."
            )
        if store.dtypes[name] not in DTYPES:
            raise CheckpointError(
                f"{where}: tensor {name} has dtype {store.dtypes[name]}, want one of "
                f"{', '.join(DTYPES)}; quantized safetensors are not supported."
            )


def _harmless(config: ModelConfig, store: TensorStore, name: str) -> bool:
    """Whether a tensor repeats what the configuration or another tensor already says."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    (head,), (embedding,) = (rule(config, ours)[1] for ours in ("head.kernel", "embed.embedding"))
    if name != head or not config.tied_embeddings:
        return False
    if embedding not in store.shapes or store.shapes[embedding] != store.shapes[name]:
        return False
    if not np.array_equal(store.read(name), store.read(embedding)):
        raise CheckpointError(
            f"{head} differs from {embedding} although config.json says that they are tied "
            "(tie_word_embeddings, weight_tying); set it to false to keep both."
        )
    return True


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{len(names)} tensors ({shown}{', ...' if len(names) > 8 else ''})"


def _unmapped_message(names: list[str], config: ModelConfig, where: str) -> str:
    message = f"{where}: {_some(names)} have no place in a {config.family} model."
    if any(part in name for name in names for part in ("vision", "multi_modal")):
        message += " This is a multimodal checkpoint; export its text model alone and convert that."
    elif any(name.endswith(".bias") for name in names):
        message += " Does config.json lack attention_bias or mlp_bias?"
    return message


def stored_dtypes(config: ModelConfig, store: TensorStore) -> dict[str, str]:
    """Dtype of each of our parameters; a fusion of mixed dtypes takes one that holds them all."""
    out = {}
    for name in param_shapes(config):
        kinds = {store.dtypes[theirs] for theirs in rule(config, name)[1]}
        out[name] = kinds.pop() if len(kinds) == 1 else "float32"
    return out


def read_param(
    config: ModelConfig, store: TensorStore, name: str, part: slice | None = None
) -> np.ndarray:
    """Reads the tensors one of our parameters needs, and joins them.

    Args:
        config: the model.
        store: where they are.
        name: our parameter.
        part: only so much of the axis that devices split it on (`dist.axes`); of the first one
            where they do not.
    """
    transform, names = rule(config, name)
    boxes: list[Box] | list[None] = [None] * len(names)
    if part is not None:
        axis = axes.split_of(name, len(param_shapes(config)[name])) or 0
        boxes = transform.boxes(config, axis, part)
    arrays = [store.read(theirs, box) for theirs, box in zip(names, boxes, strict=True)]
    if len({array.dtype for array in arrays}) > 1:
        arrays = [array.astype(np.float32) for array in arrays]
    return transform.join(config, arrays)


def split_param(
    config: ModelConfig, name: str, array: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the Hugging Face tensors that one of our parameters holds."""
    transform, names = rule(config, name)
    yield from zip(names, transform.split(config, array), strict=True)


def hf_layout(config: ModelConfig) -> Iterator[tuple[str, str, int, tuple[int, ...]]]:
    """Yields (our name, Hugging Face name, number of elements, shape) in writing order."""
    for name, shape in param_shapes(config).items():
        transform, names = rule(config, name)
        for theirs, their_shape in zip(names, transform.shapes(config, shape), strict=True):
            yield name, theirs, math.prod(their_shape), their_shape
