"""KV heads repeated so that they can be split over more devices than there are heads.

Each copy keeps its head's key and value and serves an equal share of its query heads. The order of
query heads does not change, so nothing else of the model does either.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecode.models.config import ModelConfig


def repeat_config(config: ModelConfig, copies: int) -> ModelConfig:
    """The config of a model with every KV head `copies` times."""
    return dataclasses.replace(config, num_kv_heads=config.num_kv_heads * copies)


def is_repeated(name: str) -> bool:
    """Whether a parameter has one entry per KV head, by its flat name."""
    return ".attn.qkv." in name


def repeated_from(part: slice, copies: int) -> slice:
    """The heads of the checkpoint whose copies hold a part of the repeated heads."""
    return slice(part.start // copies, -(-part.stop // copies))


def repeat_array(name: str, array: Any, copies: int) -> Any:
    """A parameter of the model with repeated heads, from the checkpoint's.

    Args:
        name: its flat name; only `attn.qkv` changes.
        array: `[..., kv_heads, group + 2, head_dim]` for those; NumPy or JAX, or a shape.
        copies: must divide the group.
    """
    if copies == 1 or not is_repeated(name):
        return array
    *lead, heads, parts, width = array.shape
    group = parts - 2
    if isinstance(array, jax.ShapeDtypeStruct):
        shape = (*lead, heads * copies, group // copies + 2, width)
        return jax.ShapeDtypeStruct(shape, array.dtype)
    xp = np if isinstance(array, np.ndarray) else jnp
    query, rest = array[..., :group, :], array[..., group:, :]
    query = query.reshape(*lead, heads * copies, group // copies, width)
    return xp.concatenate([query, xp.repeat(rest, copies, axis=-3)], axis=-2)
