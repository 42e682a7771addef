"""Tree attention for NVIDIA GPUs (Pallas-Triton): the cache of a row is split among programs.

A program holds one tile of queries of one KV head (the heads of a group side by side) and walks an
equal share of the row's cached slots; the first share also takes the new rows. Shares end in
unnormalised sums, which are merged by their peaks. So long rows of small batches fill the device,
and short rows end early. Tiles of queries that read the same slots run beside each other, so that
all but one find them in the L2 cache.

Every offset into the cache is computed in the kernel, from the layer, the page table and the
length: nothing of the cache's shape is sliced or copied before.
"""

import dataclasses
import functools
import json
import math
from importlib import resources
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int, UInt32

from pallas_kernels import device
from pallas_kernels.bits import WORD
from pallas_kernels.tree_attention.problem import Problem
from pallas_kernels.worklist import NEW_FULL, WorkList

# Sides of a matrix product below this are not worth a tile.
_SMALLEST = 16
# Below every score, yet finite: a share that sees nothing has this peak and weight 0.
_LOWEST = -1e30
# By default tensor cores would round 32-bit numbers to 19 bits; three products keep 32.
_PRECISION = {"float32": lax.DotAlgorithmPreset.TF32_TF32_F32_X3, "bfloat16": None, "float16": None}
_PRECISION_ON_CPU = lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Sizes that trade registers, shared memory and occupancy; `tuned/gpu.json` lists them.

    Attributes:
        rows: most queries of a program.
        columns: most keys of one step.
        warps: warps of a program.
        stages: steps whose keys and values are in flight.
        programs: programs that fill a device.
        least_share: slots of a share below which a row is not split further.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    programs: int = 256
    least_share: int = 512


class _Inputs(NamedTuple):
    """Everything a program reads.

    `first` and `num_new` are by tile of queries, the rest of the plan is by item; keys, values and
    words are as in `tree_attention`.
    """

    layer: Any
    lengths: Any
    table: Any
    first: Any
    num_new: Any
    new_tile: Any
    mask_tile: Any
    kind: Any
    words: Any
    query: Any
    new_key: Any
    new_value: Any
    key: Any
    value: Any


class _Place(NamedTuple):
    """What a program works on: a row of the batch, a KV head, a tile of queries, a share."""

    row: Any
    head: Any
    tile: Any
    share: Any


def refuses(sizes: Problem, device_kind: str | None = None) -> str | None:
    """Why this kernel cannot serve a problem; None if it can."""
    del device_kind
    width, widest = sizes.head_dim, 128 if sizes.dtype == "float32" else 256
    if sizes.window:
        return f"window={sizes.window}: it has no sliding windows; use 'xla'."
    if sizes.dtype not in _PRECISION:
        return f"keys of dtype {sizes.dtype}; it takes {' or '.join(_PRECISION)}."
    if width & (width - 1) or not _SMALLEST <= width <= widest:
        return (
            f"head_dim={width} in {sizes.dtype} is not a power of two from {_SMALLEST} to {widest},"
            " beyond which registers spill; use 'xla'."
        )
    if sizes.page % _SMALLEST:
        return f"a page of {sizes.page} slots is not a multiple of {_SMALLEST}."
    return None


def blocks_for(sizes: Problem, device_kind: str | None = None) -> Blocks:
    """The tuned sizes of a device kind, e.g. "NVIDIA H100 80GB HBM3"; None if unknown.

    Chosen by what compiles without register spills; see `tests/kernels/test_gpu_compile.py`.
    """
    kinds = [kind for kind in _tuned() if (device_kind or "").startswith(kind)]
    sizes_of = [entry for kind in (*kinds, "default") for entry in _tuned()[kind]]
    fits = (
        entry["blocks"]
        for entry in sizes_of
        if entry["itemsize"] == sizes.itemsize and sizes.head_dim <= entry["head_dim"]
    )
    return Blocks(**next(fits))


@functools.cache
def _tuned() -> dict[str, list[dict[str, Any]]]:
    data = resources.files("pallas_kernels.tree_attention") / "tuned" / "gpu.json"
    return json.loads(data.read_text(encoding="utf-8"))


def _replace(tuned: Blocks, blocks: dict[str, int]) -> Blocks:
    unknown = set(blocks) - set(vars(tuned))
    if unknown:
        raise ValueError(f"blocks={blocks}: {min(unknown)!r} is none of {', '.join(vars(tuned))}.")
    return dataclasses.replace(tuned, **blocks)


def tree_attention(
    query: Float[Array, "B K G T d"],
    new_key: Float[Array, "B K d T"],
    new_value: Float[Array, "B K T d"],
    cached_key: Float[Array, "H P K d page"] | None,
    cached_value: Float[Array, "H P K page d"] | None,
    work: WorkList,
    words: UInt32[Array, "M W R"],
    layer: Int[Array, ""],
    *,
    sizes: Problem,
    out_dtype: Any,
    interpret: Any = False,
    blocks: dict[str, int] | None = None,
) -> Float[Array, "B K G T d"]:
    """As `api.tree_attention`, for rows padded to whole tiles and sizes that are not refused.

    Args:
        query: already scaled; T is a multiple of `work.row_tile`.
        new_key: keys of the new rows.
        new_value: values of the new rows.
        cached_key: pages of all layers, or None.
        cached_value: likewise.
        work: the plan.
        words: tiles of packed words, of `work.row_tile` rows and columns.
        layer: layer of the cache to read.
        sizes: the sizes of the call.
        out_dtype: dtype of the result.
        interpret: run on the CPU.
        blocks: fields of `Blocks` to replace.

    Raises:
        ValueError: `blocks` names no field of `Blocks`.
    """
    if cached_key is None or cached_value is None:
        # Nothing is cached, so all lengths are 0 and this stand-in is never read.
        cached_key, cached_value = new_key[None], new_value[None]
    batch, heads, group, rows, width = query.shape
    tuned = _replace(blocks_for(sizes, device.kind("gpu")), blocks or {})
    precision = _PRECISION_ON_CPU if interpret else _PRECISION[sizes.dtype]
    tiling = _tiling(sizes, tuned, page=cached_value.shape[3], precision=precision)
    shares = (tiling.shares, batch, heads, group * rows)
    axes = jax.typeof(query).manual_axis_type
    mixed, peak, total = pl.pallas_call(
        functools.partial(_program, tiling=tiling),
        out_shape=[
            jax.ShapeDtypeStruct(shape, jnp.float32, manual_axis_type=axes)
            for shape in ((*shares, width), shares, shares)
        ],
        grid=(batch * heads * tiling.row_tiles, tiling.shares),
        compiler_params=plgpu.CompilerParams(num_warps=tuned.warps, num_stages=tuned.stages),
        interpret=interpret,
        name="tree_attention",
    )(
        _Inputs(
            **_by_query_tile(work, tiling.query_tiles),
            layer=layer.reshape(1),
            lengths=work.lengths,
            table=work.table,
            words=words,
            query=query.reshape(batch, heads, group * rows, width),
            new_key=new_key,
            new_value=new_value,
            key=cached_key,
            value=cached_value,
        )
    )
    weight = jnp.exp(peak - peak.max(0))
    out = (mixed * weight[..., None]).sum(0) / (total * weight).sum(0)[..., None]
    return out.reshape(query.shape).astype(out_dtype)


@dataclasses.dataclass(frozen=True)
class _Tiling:
    """Static sizes of a program; `row_tile` is that of the plan, the mask's period over rows."""

    rows: int
    columns: int
    new_columns: int
    row_tile: int
    row_tiles: int
    query_tiles: int
    heads: int
    page: int
    shares: int
    precision: Any


def _tiling(sizes: Problem, blocks: Blocks, *, page: int, precision: Any) -> _Tiling:
    query_tiles, num_rows = sizes.padded_rows // sizes.row_tile, sizes.group * sizes.padded_rows
    # Where all new rows share one list, a tile of queries may span several heads of the group.
    span = sizes.row_tile if query_tiles > 1 else num_rows
    rows = math.gcd(blocks.rows, span)
    row_tiles = num_rows // rows
    wanted = -(-blocks.programs // (sizes.batch * sizes.kv_heads * row_tiles))
    most = -(-page * sizes.pages_per_row // blocks.least_share)
    return _Tiling(
        rows=rows,
        columns=math.gcd(blocks.columns, page),
        new_columns=math.gcd(blocks.columns, sizes.row_tile),
        row_tile=sizes.row_tile,
        row_tiles=row_tiles,
        query_tiles=query_tiles,
        heads=sizes.kv_heads,
        page=page,
        shares=max(1, min(wanted, most)),
        precision=precision,
    )


def _by_query_tile(work: WorkList, query_tiles: int) -> dict[str, Int[Array, "..."]]:
    """The plan's tiles of new rows, and where each tile of queries finds its own."""
    groups = jnp.arange(work.lengths.shape[0] * query_tiles, dtype=jnp.int32)
    listed = jnp.arange(work.row.shape[0]) < work.count
    group = jnp.where(listed, work.row * query_tiles + work.query_tile, len(groups))
    is_new = listed & (work.kind <= NEW_FULL)
    return {
        "first": jnp.searchsorted(group, groups).astype(jnp.int32),
        "num_new": jnp.zeros_like(groups).at[group].add(is_new.astype(jnp.int32), mode="drop"),
        "new_tile": work.new_tile,
        "mask_tile": work.mask_tile,
        "kind": work.kind,
    }


def _program(inputs: _Inputs, mixed, peak, total, *, tiling: _Tiling) -> None:
    """One tile of queries over one share of its row's slots; all arrays are references."""
    program, share = pl.program_id(0), pl.program_id(1)
    tile = lax.rem(program, tiling.row_tiles)
    head = lax.rem(lax.div(program, tiling.row_tiles), tiling.heads)
    row = lax.div(program, tiling.row_tiles * tiling.heads)
    place = _Place(row, head, tile, share)
    rows = pl.ds(tile * tiling.rows, tiling.rows)
    query = inputs.query[row, head, rows, :]
    update = functools.partial(_update, query, precision=tiling.precision)

    sums = (
        jnp.full((tiling.rows,), _LOWEST, jnp.float32),
        jnp.zeros((tiling.rows,), jnp.float32),
        jnp.zeros(query.shape, jnp.float32),
    )
    sums = _over_new(sums, update, inputs, place, tiling)
    sums = _over_cache(sums, update, inputs, place, tiling)
    peak[share, row, head, rows], total[share, row, head, rows] = sums[:2]
    mixed[share, row, head, rows, :] = sums[2]


def _update(query, sums, key, value, visible, *, precision):
    """One step of the online softmax: peaks, sums of weights, sums of weighted values."""
    peak, total, mixed = sums
    scores = plgpu.dot(query, key, precision=precision)
    if visible is not None:
        scores = jnp.where(visible, scores, -jnp.inf)
    higher = jnp.maximum(peak, scores.max(1))
    weights = jnp.exp(scores - higher[:, None])
    shrink = jnp.exp(peak - higher)
    step = plgpu.dot(weights.astype(value.dtype), value, precision=precision)
    return higher, total * shrink + weights.sum(1), mixed * shrink[:, None] + step


def _over_new(sums, update, inputs: _Inputs, place: _Place, tiling: _Tiling):
    """The new rows that the plan lists, in the first share."""
    shape, parts = (tiling.rows, tiling.new_columns), tiling.row_tile // tiling.new_columns
    start = place.tile * tiling.rows
    query_tile = lax.div(lax.rem(start, tiling.query_tiles * tiling.row_tile), tiling.row_tile)
    group = place.row * tiling.query_tiles + query_tile
    first = inputs.first[group]
    node = lax.rem(start + jnp.arange(tiling.rows, dtype=jnp.int32), tiling.row_tile)[:, None]
    word, bit = jnp.broadcast_to(lax.div(node, WORD), shape), lax.rem(node, WORD)

    def step(i, sums):
        item, part = first + lax.div(i, parts), lax.rem(i, parts) * tiling.new_columns
        column = jnp.broadcast_to(part + jnp.arange(tiling.new_columns), shape)
        packed = inputs.words[inputs.mask_tile[item], word, column]
        visible = ((packed >> bit.astype(packed.dtype)) & 1 == 1) | (inputs.kind[item] == NEW_FULL)
        columns = pl.ds(inputs.new_tile[item] * tiling.row_tile + part, tiling.new_columns)
        key = inputs.new_key[place.row, place.head, :, columns]
        value = inputs.new_value[place.row, place.head, columns, :]
        return update(sums, key, value, visible)

    steps = jnp.where(place.share == 0, inputs.num_new[group] * parts, 0)
    return lax.fori_loop(jnp.int32(0), steps, step, sums)


def _over_cache(sums, update, inputs: _Inputs, place: _Place, tiling: _Tiling):
    """The slots of the place's share; only the last block of a row can hold unused ones."""
    layer, length = inputs.layer[0], inputs.lengths[place.row]

    def step(i, sums, *, ragged: bool):
        first = i * tiling.columns
        page = inputs.table[place.row, lax.div(first, tiling.page)]
        slots = pl.ds(pl.multiple_of(lax.rem(first, tiling.page), tiling.columns), tiling.columns)
        key = inputs.key[layer, page, place.head, :, slots]
        value = inputs.value[layer, page, place.head, slots, :]
        if not ragged:
            return update(sums, key, value, None)
        used = first + jnp.arange(tiling.columns, dtype=jnp.int32) < length
        # Unused slots may hold NaN, which a weight of 0 would not hide.
        value = jnp.where(used[:, None], value, jnp.zeros_like(value))
        return update(sums, key, value, jnp.broadcast_to(used, (tiling.rows, tiling.columns)))

    full, num = lax.div(length, tiling.columns), pl.cdiv(length, tiling.columns)
    share = pl.cdiv(num, tiling.shares)
    start = place.share * share
    end = jnp.minimum(start + share, num)
    whole, partial = (functools.partial(step, ragged=ragged) for ragged in (False, True))
    sums = lax.fori_loop(start, jnp.minimum(end, full), whole, sums)
    return lax.fori_loop(jnp.maximum(start, full), end, partial, sums)
