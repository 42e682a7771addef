"""The commit on TPU: reads and writes only the tiles of 128 slots that receive rows (Mosaic).

A tile's new columns are picked and put in place by one product with a 0/1 matrix, which is exact:
each output is one input. The caches are updated in place, all layers in one call.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

_LANES = 128
_DTYPES = ("bfloat16", "float32")
# Below the 16 MiB that every generation grants a kernel by default.
_VMEM_BYTES = 14 * 2**20


class _Items(NamedTuple):
    """Tiles that receive rows: slots lo .. hi - 1 of `tile` in `page`, from batch row `row`."""

    row: Int[Array, "N"]
    page: Int[Array, "N"]
    tile: Int[Array, "N"]
    lo: Int[Array, "N"]
    hi: Int[Array, "N"]


def refuses(head_dim: int, rows: int, page: int, dtype: Any) -> str | None:
    """Why this kernel cannot write such rows; None if it can."""
    name = jnp.dtype(dtype).name
    if name not in _DTYPES:
        return f"keys of dtype {name}; it takes {' or '.join(_DTYPES)}."
    if head_dim % 8:
        return f"head_dim={head_dim} is not a multiple of 8 sublanes."
    if page % min(page, _LANES):
        return f"pages of {page} slots are not whole tiles; use a multiple of {_LANES}."
    if _vmem_bytes(1, head_dim, rows, dtype) > _VMEM_BYTES:
        return f"{rows} new rows of one head do not fit vector memory; write them in parts."
    return None


def commit(
    cached_key: Float[Array, "H P K d page"],
    cached_value: Float[Array, "H P K page d"],
    new_key: Float[Array, "H B K d T"],
    new_value: Float[Array, "H B K T d"],
    *,
    path: Int[Array, "B N"],
    start: Int[Array, "B"],
    num: Int[Array, "B"],
    table: Int[Array, "B M"],
    interpret: Any = False,
) -> tuple[Float[Array, "H P K d page"], Float[Array, "H P K page d"]]:
    """The kernel's call; arguments as in `reference.commit`."""
    layers, _, kv_heads, width, page = cached_key.shape
    rows, size = new_key.shape[4], min(page, _LANES)
    # Where heads leave lanes empty, the compiler lays values out as [d, page], like keys; read so,
    # the cache is not copied to another layout.
    transposed = width % _LANES != 0
    if transposed:
        cached_value, new_value = cached_value.swapaxes(3, 4), new_value.swapaxes(3, 4)
    items, nodes, count = _plan(path, start, num, table, page=page, size=size)
    heads = _heads(kv_heads, width, rows, cached_key.dtype)

    def spec(shape, index):
        return pl.BlockSpec((1, 1, *shape), lambda n, h, i, *refs: index(n, h, i, _Items(*refs)))

    def new(*shape):
        return spec((heads, *shape), lambda n, h, i, s: (n, s.row[i], h, 0, 0))

    key = spec((heads, width, size), lambda n, h, i, s: (n, s.page[i], h, 0, s.tile[i]))
    value = spec((heads, size, width), lambda n, h, i, s: (n, s.page[i], h, s.tile[i], 0))
    caches = [key, key if transposed else value]
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(_Items._fields),
        grid=(layers, kv_heads // heads, count),
        in_specs=[
            spec((1, size), lambda n, h, i, s: (i, 0, 0, 0)),
            new(width, rows),
            new(*new_value.shape[3:]),
            *caches,
        ],
        out_specs=caches,
    )
    first_cache = len(_Items._fields) + 3
    call = pl.pallas_call(
        functools.partial(_kernel, value_slots=int(transposed)),
        out_shape=[_like(cached_key), _like(cached_value)],
        grid_spec=grid_spec,
        input_output_aliases={first_cache: 0, first_cache + 1: 1},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="commit",
    )
    key, value = call(*items, nodes, new_key, new_value, cached_key, cached_value)
    return key, value.swapaxes(3, 4) if transposed else value


def _plan(
    path, start, num, table, *, page: int, size: int
) -> tuple[_Items, Int[Array, "N 1 1 size"], Int[Array, ""]]:
    """Tiles that receive rows, and for each of their slots the new row, or -1."""
    start = start.astype(jnp.int32)
    num = jnp.minimum(jnp.minimum(num, path.shape[1]), page * table.shape[1] - start)
    first = start // size
    tiles = jnp.where(num > 0, (start + num - 1) // size - first + 1, 0)
    most = (path.shape[1] + size - 2) // size + 1
    ends = jnp.cumsum(tiles)
    item = jnp.arange(path.shape[0] * most, dtype=jnp.int32)
    row = jnp.minimum(jnp.searchsorted(ends, item, side="right"), len(ends) - 1)
    row = row.astype(jnp.int32)
    base = (first[row] + item - (ends - tiles)[row]) * size
    base = jnp.clip(base, 0, page * table.shape[1] - 1) // size * size
    order = base[:, None] + jnp.arange(size) - start[row][:, None]
    taken = (order >= 0) & (order < num[row][:, None])
    nodes = jnp.take_along_axis(path[row], jnp.clip(order, 0, path.shape[1] - 1), axis=1)
    lo = jnp.clip(start[row] - base, 0, size)
    items = _Items(
        row=row,
        page=table[row, base // page],
        tile=base % page // size,
        lo=lo,
        hi=jnp.clip(start[row] + num[row] - base, lo, size),
    )
    # At least one step: an item without rows writes back what it read.
    return items, jnp.where(taken, nodes, -1)[:, None, None], jnp.maximum(ends[-1], 1)


def _kernel(*refs, value_slots: int) -> None:
    """One tile. `value_slots` is the axis of slots in a head's values; keys have them last."""
    num_scalars = len(_Items._fields)
    items = _Items(*refs[:num_scalars])
    nodes, new_key, new_value, old_key, old_value, key, value = refs[num_scalars:]
    item = pl.program_id(2)
    lo, hi = items.lo[item], items.hi[item]
    rows, size = new_key.shape[4], nodes.shape[3]
    node = jax.lax.broadcasted_iota(jnp.int32, (rows, size), 0)
    chosen = (node == nodes[0, 0]).astype(new_key.dtype)

    def each_head(h, _):
        key[0, 0, h] = _put(new_key[0, 0, h], old_key[0, 0, h], chosen, lo, hi, 1)
        value[0, 0, h] = _put(new_value[0, 0, h], old_value[0, 0, h], chosen, lo, hi, value_slots)

    jax.lax.fori_loop(0, key.shape[2], each_head, None)


def _put(new: Array, old: Array, chosen: Float[Array, "T size"], lo, hi, slots: int) -> Array:
    """The old tile with the chosen new rows in slots lo .. hi - 1 of its axis `slots`."""
    precision = jax.lax.Precision.HIGHEST if new.dtype == jnp.float32 else None
    operands, contract = ((new, chosen), (1, 0)) if slots else ((chosen, new), (0, 0))
    picked = jax.lax.dot_general(
        *operands,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    index = jax.lax.broadcasted_iota(jnp.int32, old.shape, slots)
    return jnp.where((index >= lo) & (index < hi), picked.astype(old.dtype), old)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    axes = jax.typeof(x).manual_axis_type
    return jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=axes)


def _heads(kv_heads: int, width: int, rows: int, dtype: Any) -> int:
    divisors = [n for n in range(1, kv_heads + 1) if kv_heads % n == 0]
    return max(n for n in divisors if n == 1 or _vmem_bytes(n, width, rows, dtype) <= _VMEM_BYTES)


def _vmem_bytes(heads: int, width: int, rows: int, dtype: Any) -> int:
    """Blocks of old, new and written rows, each twice because one is being copied."""
    lanes, padded = (-(-n // _LANES) * _LANES for n in (width, rows))
    tiles = 2 * _LANES * (width + lanes) + padded * width + rows * lanes
    return 2 * heads * tiles * jnp.dtype(dtype).itemsize + padded * _LANES * 8
