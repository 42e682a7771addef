"""Moving arrays between hosts and meshes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.layout import Format
from jax.sharding import Mesh, NamedSharding

from jaxdecode.dist import rules


def put(array: np.ndarray, sharding: NamedSharding | Format) -> jax.Array:
    """A host array on a mesh; each process copies the parts of its own devices only.

    Every process must hold equal values.
    """
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def put_part(
    array: np.ndarray,
    sharding: NamedSharding | Format,
    shape: tuple[int, ...],
    *,
    axis: int,
    start: int,
) -> jax.Array:
    """As `put`, from an array that begins at `start` of an axis and holds all of `own_part`."""

    def cut(index: Any) -> np.ndarray:
        begin, stop, _ = index[axis].indices(shape[axis])
        return array[(*index[:axis], slice(begin - start, stop - start), *index[axis + 1 :])]

    return jax.make_array_from_callback(shape, sharding, cut)


def own_part(sharding: NamedSharding | Format, shape: tuple[int, ...], axis: int) -> slice:
    """The part of an axis that devices of this process hold, from the first to the last."""
    where: Any = sharding.sharding if isinstance(sharding, Format) else sharding
    held = where.addressable_devices_indices_map(shape).values()
    bounds = [index[axis].indices(shape[axis]) for index in held]
    return slice(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))


def rows(tree: Any, mesh: Mesh | None, batch: int) -> Any:
    """Host arrays, and device arrays of this process, split by rows over a mesh (`rules.rows`).

    Arrays that lie on a mesh already, and everything where there is no mesh, stay as they are.
    """
    if mesh is None:
        return tree

    def move(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
            return leaf
        return put(np.asarray(leaf), sharding)

    return jax.tree.map(move, tree, rules.rows(tree, mesh, batch))


def per_device(function: Callable[..., Any], mesh: Mesh, *, in_specs: Any, out_specs: Any) -> Any:
    """`function` on the parts that each device holds, without communication between them."""
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def fetch(tree: Any) -> Any:
    """Host copies of arrays; every process gets the whole of those that several share."""

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    return jax.device_get(jax.tree.map(copy, tree))
