"""The rules that map logical axes (`dist.axes`) to mesh axes, and what lies where by them."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdecode.dist import axes
from jaxdecode.errors import InputError

RULES = {"rows": "data", "kv_heads": "model", "heads": "model", "mlp": "model", "vocab": "model"}

# TPU lays the last two axes out in tiles of 8 x 128: with an axis of 2 there, every program would
# begin with a copy in another order.
_TPU_ORDER = {"mlp.gate_up.kernel": (1, 0, 2)}


def spec(names: Sequence[str | None]) -> PartitionSpec:
    """Logical axes as a partition of mesh axes."""
    return PartitionSpec(*(None if name is None else RULES[name] for name in names))


def param(name: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Sharding of one parameter by its flat name. A vocabulary that does not divide lies whole.

    Raises:
        InputError: an axis does not divide by its mesh axis.
    """
    names = axes.param(name, len(shape))
    if names[:1] == ("vocab",) and shape[0] % mesh.shape[RULES["vocab"]]:
        # Padding rows would be tokens that could be drawn.
        names = (None,) * len(shape)
    _check(name, shape, names, mesh)
    return NamedSharding(mesh, spec(names))


def param_format(name: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding | Format:
    """Where a parameter lies, and on TPU in which order of axes if not in their own."""
    sharding = param(name, shape, mesh)
    order = next((order for end, order in _TPU_ORDER.items() if name.endswith(end)), None)
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
        names = axes.cache(leaf.ndim)
        _check("the cache", leaf.shape, names, mesh)
        return NamedSharding(mesh, spec(names))

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


def _check(name: str, shape: Sequence[int], names: Sequence[str | None], mesh: Mesh) -> None:
    for dim, axis in zip(shape, names, strict=True):
        if axis is None:
            continue
        size = mesh.shape[RULES[axis]]
        if dim % size:
            raise InputError(
                f"{name} of shape {tuple(shape)} cannot be split: {axis}={dim} does not divide by "
                f"mesh axis {RULES[axis]}={size}."
            )


def batch(mesh: Mesh) -> NamedSharding:
    """Rows over "data": where the texts of a training step lie."""
    return NamedSharding(mesh, spec(("rows",)))


def trained(tree: Any, mesh: Mesh, *, gathered: bool = False) -> Any:
    """Shardings of what training changes: parameters by name, and the optimizer's of each.

    Every array is split over all devices as far as it divides: by the rules of its name, and then
    its longest other axis over "data" (as ZeRO-3, arXiv:1910.02054). Vectors lie whole.

    Args:
        tree: arrays or their shapes, by name.
        mesh: the devices.
        gathered: without the split over "data", as products read parameters.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = str(getattr(path[-1], "key", "")).replace("/", ".")
        return NamedSharding(mesh, _trained(name, leaf.shape, mesh, gathered))

    return jax.tree_util.tree_map_with_path(place, tree)


def _trained(name: str, shape: Sequence[int], mesh: Mesh, gathered: bool) -> PartitionSpec:
    if len(shape) < 2:
        return PartitionSpec()
    found: list[str | None] = [None] * len(shape)
    names = axes.param(name, len(shape)) if axes.fits(name, len(shape)) else found
    for axis, logical in enumerate(names):
        if logical is not None and shape[axis] % mesh.shape[RULES[logical]] == 0:
            found[axis] = RULES[logical]
    free = [axis for axis, taken in enumerate(found) if taken is None and not gathered]
    fits = [axis for axis in free if shape[axis] % mesh.shape["data"] == 0]
    if fits:
        found[max(fits, key=lambda axis: shape[axis])] = "data"
    return PartitionSpec(*found)
