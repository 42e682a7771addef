"""Logical axes of every array, and the rules that map them to mesh axes.

A parameter is split along its heads, its MLP width or the vocabulary; a row of the batch lies
whole on one "data" index. A layer then needs two all-reduces, after `attn.o` and after `mlp.down`.
Source of the split: Megatron-LM, arXiv:1909.08053 section 3.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdecode.errors import InputError

RULES = {"rows": "data", "kv_heads": "model", "heads": "model", "mlp": "model", "vocab": "model"}

# By the end of a parameter's name; what is not listed lies whole on every device.
_PARAMS: dict[str, tuple[str | None, ...]] = {
    "embed.embedding": ("vocab", None),
    "head.kernel": ("vocab", None),
    "attn.qkv.kernel": (None, "kv_heads", None, None),
    "attn.qkv.bias": ("kv_heads", None, None),
    "attn.o.kernel": (None, "heads"),
    "mlp.gate_up.kernel": (None, None, "mlp"),
    "mlp.gate_up.bias": (None, "mlp"),
    "mlp.down.kernel": (None, "mlp"),
}
# TPU lays the last two axes out in tiles of 8 x 128: with an axis of 2 there, every program would
# begin with a copy in another order.
_TPU_ORDER = {"mlp.gate_up.kernel": (1, 0, 2)}
# Keys and values: rows, then KV heads; a stacked cache has the layers in front.
_CACHE = ("rows", "kv_heads", None, None)


def param_axes(name: str, ndim: int) -> tuple[str | None, ...]:
    """Logical axes of a parameter by its flat name; stacked ones have a layer axis in front."""
    found = next((axes for end, axes in _PARAMS.items() if name.endswith(end)), ())
    return (None,) * (ndim - len(found)) + found


def cache_axes(ndim: int) -> tuple[str | None, ...]:
    """Logical axes of a cache's keys or values; with five axes, the first are the layers."""
    return (None,) * (ndim - len(_CACHE)) + _CACHE


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Logical axes as a partition of mesh axes."""
    return PartitionSpec(*(None if axis is None else RULES[axis] for axis in axes))


def param(name: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Sharding of one parameter by its flat name. A vocabulary that does not divide lies whole.

    Raises:
        InputError: an axis does not divide by its mesh axis.
    """
    axes = param_axes(name, len(shape))
    if axes[:1] == ("vocab",) and shape[0] % mesh.shape[RULES["vocab"]]:
        # Padding rows would be tokens that could be drawn.
        axes = (None,) * len(shape)
    _check(name, shape, axes, mesh)
    return NamedSharding(mesh, spec(axes))


def param_format(name: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding | Format:
    """Where a parameter lies, and on TPU in which order of axes if not in their own."""
    sharding = param(name, shape, mesh)
    order = next((axes for end, axes in _TPU_ORDER.items() if name.endswith(end)), None)
    if order is None or mesh.devices.flat[0].platform != "tpu":
        return sharding
    lead = len(shape) - len(order)
    return Format(Layout((*range(lead), *(lead + axis for axis in order))), sharding)


def params(tree: Any, mesh: Mesh) -> Any:
    """Places of a parameter tree (arrays or their shapes), per-layer or stacked."""

    def place(path: Any, leaf: Any) -> NamedSharding | Format:
        name = ".".join(str(getattr(entry, "key", getattr(entry, "idx", ""))) for entry in path)
        return param_format(name, leaf.shape, mesh)

    return jax.tree_util.tree_map_with_path(place, tree)


def cache(tree: Any, mesh: Mesh) -> Any:
    """Shardings of a cache's keys and values.

    Raises:
        InputError: rows or KV heads do not divide by their mesh axis.
    """

    def place(leaf: Any) -> NamedSharding:
        axes = cache_axes(leaf.ndim)
        _check("the cache", leaf.shape, axes, mesh)
        return NamedSharding(mesh, spec(axes))

    return jax.tree.map(place, tree)


def rows(tree: Any, mesh: Mesh, batch: int) -> Any:
    """Shardings of a canvas, a request or a drafter's state: arrays with an entry per row are split
    by rows, the others lie whole on every device.
    """

    def place(leaf: Any) -> NamedSharding:
        per_row = leaf.ndim > 0 and leaf.shape[0] == batch
        return NamedSharding(mesh, spec(("rows",)) if per_row else PartitionSpec())

    return jax.tree.map(place, tree)


def kv_copies(num_kv_heads: int, group_size: int, size: int) -> int:
    """How often each KV head is repeated so that the heads divide a mesh axis of this size.

    Every copy serves its share of the query heads, so a device holds no more than one of unsplit
    heads would need.

    Raises:
        InputError: no number of copies makes query and KV heads divide.
    """
    copies = size // math.gcd(num_kv_heads, size)
    if group_size % copies:
        sizes = range(1, num_kv_heads * group_size + 1)
        fits = [n for n in sizes if _fits(num_kv_heads, group_size, n)]
        raise InputError(
            f"{num_kv_heads} KV heads with {group_size} query heads each cannot be split over "
            f"model={size}; use a model axis of {', '.join(map(str, fits))}."
        )
    return copies


def _fits(num_kv_heads: int, group_size: int, size: int) -> bool:
    return group_size % (size // math.gcd(num_kv_heads, size)) == 0


def _check(name: str, shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh) -> None:
    for dim, axis in zip(shape, axes, strict=True):
        if axis is None:
            continue
        size = mesh.shape[RULES[axis]]
        if dim % size:
            raise InputError(
                f"{name} of shape {tuple(shape)} cannot be split: {axis}={dim} does not divide by "
                f"mesh axis {RULES[axis]}={size}."
            )
