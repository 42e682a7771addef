"""Layers of Llama models as published heads have them: tensors by their usual names."""

import numpy as np

from jaxdecode.convert import names
from jaxdecode.convert.published.layout import Codec
from jaxdecode.models.config import ModelConfig


def codec(name: str, prefix: str, head_dim: int) -> Codec:
    """A parameter of a layer.

    Args:
        name: ours, such as "attn.qkv.kernel".
        prefix: of their layer.
        head_dim: width of a head.
    """
    transform, theirs = names.FAMILY_LAYER["llama"][name]

    def join(arrays: list[np.ndarray]) -> np.ndarray:
        group = len(arrays[0]) // len(arrays[1]) if len(arrays) == 3 else 1
        return transform.join(_config(head_dim, group), arrays)

    def split(array: np.ndarray) -> list[np.ndarray]:
        group = array.shape[-2] - 2 if len(theirs) == 3 else 1
        return transform.split(_config(array.shape[-1], group), array)

    return Codec(tuple(f"{prefix}.{part}" for part in theirs), join, split)


def _config(head_dim: int, group: int) -> ModelConfig:
    """What the transforms of a layer's tensors read: the width of a head, and heads per KV head."""
    return ModelConfig(
        family="llama",
        vocab_size=1,
        num_layers=1,
        hidden_size=1,
        intermediate_size=1,
        num_heads=group,
        num_kv_heads=1,
        head_dim=head_dim,
        max_length=1,
        query_scale=1.0,
        layer_windows=(0,),
    )
