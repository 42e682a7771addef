"""Dense KV cache: one page per row in `[layers, pages, kv_heads, page, head_dim]`.

This is the paged layout with the identity page table: row b is page b, and a page is as long as
the canvas. Slots at or past a row's length hold garbage that no mask lets anyone see, so rejecting
a draft means doing nothing.

The layer axis follows the form of the parameters. Stacked, it is one array that a scan slices;
as a tuple it is one array per layer, because on CPU and GPU a slice of a stacked array is copied
before it is read (measured on CPU: 3 to 7 times the time of attention).

Keys are stored transposed, `[kv_heads, head_dim, page]`: scores are then a product along the minor
axis of both operands (measured on CPU: 1.5 to 1.8 times faster), and no lane is padding on TPU
when head_dim is below 128.

Cost: 2 x layers x B x kv_heads x slots x head_dim x itemsize bytes.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int

from jaxdecode.core import ops
from jaxdecode.core.protocols import Cache, Keys, Rows, Values
from jaxdecode.core.types import pytree
from jaxdecode.dist import axes, place, rules

_KEY_SLOTS, _VALUE_SLOTS = -1, -2  # the axis of slots
# Rows that are written by a slice each, in a cache of one array per layer and in a stacked one:
# code per row and array takes long to compile. More are written in a loop; XLA may copy the cache
# for it.
_MAX_SLICES = {4: 64, 5: 512}
# One that keeps part of what the cache holds counts as so many of them: its code is longer.
_BLENDED = 8
# Pages of so few numbers are written by one scatter: that they are copied costs less than a loop.
_SMALL_PAGE = 1 << 12


@pytree
class State:
    """Keys and values of every layer, row, head and slot."""

    key: Keys
    value: Values


def init(config: Any, batch: int, slots: int, dtype: Any, *, stacked: bool) -> State:
    """An empty cache for a model config; `stacked` is the form of the parameters."""

    def zeros(*page: int) -> Any:
        shape = (batch, config.num_kv_heads, *page)
        if stacked:
            return jnp.zeros((config.num_layers, *shape), dtype)
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))

    return State(key=zeros(config.head_dim, slots), value=zeros(slots, config.head_dim))


def read(state: State) -> Rows:
    """The arrays the target attends to."""
    return state.key, state.value


def write(
    state: State, rows: Rows, start: Int[Array, "B"], num: Int[Array, "B"] | None = None
) -> State:
    """Writes new rows of each batch row b to slots start[b], start[b] + 1, ...

    Args:
        state: the cache.
        rows: T new rows per batch row.
        start: slot of the first; start + T must fit if all are written: an update that does not
            fit would be moved back over committed slots.
        num: rows that are written; those after them may reach past the last slot. None: all.
    """
    key = jax.tree.map(lambda old, new: _put(old, new, start, num, _KEY_SLOTS), state.key, rows[0])
    value = jax.tree.map(
        lambda old, new: _put(old, new, start, num, _VALUE_SLOTS), state.value, rows[1]
    )
    return State(key=key, value=value)


def _put(
    cache: Array, new: Array, start: Int[Array, "B"], num: Int[Array, "B"] | None, slots: int
) -> Array:
    batch = cache.ndim - 4
    num_rows = cache.shape[batch]
    few = num_rows * (1 if num is None else _BLENDED) <= _MAX_SLICES[cache.ndim]
    new = new.astype(cache.dtype)
    if not few and math.prod(cache.shape[batch + 1 :]) <= _SMALL_PAGE:

        def put_page(page: Array, rows: Array, first: Array, num: Array | None) -> Array:
            return _put_at(page, rows, [0] * page.ndim, first, num, slots)

        axes_in = (batch, batch, 0, None if num is None else 0)
        return jax.vmap(put_page, axes_in, batch)(cache, new, start, num)

    # One in-place slice per row: a vmapped update becomes a scatter, which is slower on CPU and
    # touches more than the rows on TPU.
    def put_row(b: int | Array, cache: Array) -> Array:
        corner: list[Any] = [0] * cache.ndim
        corner[batch] = b
        row = jax.lax.dynamic_slice_in_dim(new, b, 1, axis=batch)
        return _put_at(cache, row, corner, start[b], None if num is None else num[b], slots)

    if not few:
        return jax.lax.fori_loop(0, num_rows, put_row, cache)
    for b in range(num_rows):
        cache = put_row(b, cache)
    return cache


def _put_at(
    cache: Array, row: Array, corner: list[Any], first: Array, num: Array | None, slots: int
) -> Array:
    """The cache with one row's new slots; those that are not to be written keep what they hold."""
    corner, width = list(corner), row.shape[slots]
    if num is None:
        corner[slots] = first
        return jax.lax.dynamic_update_slice(cache, row, corner)
    corner[slots] = jnp.minimum(first, cache.shape[slots] - width)
    held = jax.lax.dynamic_slice(cache, corner, row.shape)
    # What does not fit is left out: the others move that far to the back of the slice.
    moved_by = first - corner[slots]
    room = [(0, 0)] * row.ndim
    room[slots] = (width, 0)
    moved = jax.lax.dynamic_slice_in_dim(jnp.pad(row, room), width - moved_by, width, axis=slots)
    index = jnp.arange(width) - moved_by
    ours = (index >= 0) & (index < num)
    chosen = jnp.where(ours if slots == _KEY_SLOTS else ours[:, None], moved, held)
    return jax.lax.dynamic_update_slice(cache, chosen, corner)


def put(state: State, rows: Rows, slots: Int[Array, "B T"]) -> State:
    """Writes new rows to any slots; those past the last one are dropped."""

    def scatter(old: Array, new: Array, axis: int) -> Array:
        batch = old.ndim - 4

        def page(old: Array, new: Array, slots: Array) -> Array:
            where = (..., slots) if axis == _KEY_SLOTS else (..., slots, slice(None))
            return old.at[where].set(new.astype(old.dtype), mode="drop")

        return jax.vmap(page, (batch, batch, 0), batch)(old, new, slots)

    key = jax.tree.map(lambda old, new: scatter(old, new, _KEY_SLOTS), state.key, rows[0])
    value = jax.tree.map(lambda old, new: scatter(old, new, _VALUE_SLOTS), state.value, rows[1])
    return State(key=key, value=value)


def select(rows: Rows, path: Int[Array, "B P"]) -> Rows:
    """The rows of the path nodes, in path order."""

    def take(new: Array, slots: int) -> Array:
        if new.shape[slots] == path.shape[1] == 1:
            return new
        index = path[:, None, None, :] if slots == _KEY_SLOTS else path[:, None, :, None]
        return jnp.take_along_axis(new, index if new.ndim == 4 else index[None], axis=slots)

    key = jax.tree.map(lambda new: take(new, _KEY_SLOTS), rows[0])
    return key, jax.tree.map(lambda new: take(new, _VALUE_SLOTS), rows[1])


def _pinned(state: State) -> State:
    """The same: passes of different widths want it in different orders, by copies in between."""
    return jax.tree.map(ops.by_axes, state)


@functools.cache
def make(mesh: Mesh | None = None) -> Cache:
    """The cache on one device or on a mesh, where every device writes rows and heads of its own.

    Left to the compiler, slices at places that differ from row to row would pass between devices.
    """
    if mesh is None:
        return Cache(init=init, read=read, write=write, put=put, select=select)
    by_row = rules.spec(("rows",))

    def specs(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: rules.spec(axes.cache(leaf.ndim)), tree)

    def write_own(state: State, new: Rows, start: Any, num: Any = None) -> State:
        places, given = specs(state), (start, num)
        counts = jax.tree.map(lambda _: by_row, given)
        split = place.per_device(
            lambda state, new, given: _pinned(write(state, new, *given)),
            mesh,
            in_specs=(places, specs(new), counts),
            out_specs=places,
        )
        return split(state, new, given)

    def put_own(state: State, new: Rows, slots: Int[Array, "B T"]) -> State:
        places = specs(state)
        split = place.per_device(
            lambda *given: _pinned(put(*given)),
            mesh,
            in_specs=(places, specs(new), by_row),
            out_specs=places,
        )
        return split(state, new, slots)

    def select_own(new: Rows, path: Int[Array, "B P"]) -> Rows:
        places = specs(new)
        split = place.per_device(select, mesh, in_specs=(places, by_row), out_specs=places)
        return split(new, path)

    return Cache(init=init, read=read, write=write_own, put=put_own, select=select_own)
