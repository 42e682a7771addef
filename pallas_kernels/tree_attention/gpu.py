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
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int, UInt32

from pallas_kernels.bits import WORD
from pallas_kernels.tree_attention import problem
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
    """Sizes that trade registers, shared memory and occupancy.

    Attributes:
        rows: most queries of a program.
        columns: most keys of one step.
        warps: warps of a program.
        stages: steps whose keys and values are in flight.
        programs: programs wanted on the device, a few for each multiprocessor.
        least_columns: slots of a share below which rows are not split further.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    programs: int = 512
    least_columns: int = 256


class _Inputs(NamedTuple):
    """Everything a program reads. `first` and `num_new` are by tile of queries, the rest of the
    plan by item; keys, values and words as in `tree_attention`."""

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
    if sizes.dtype not in _PRECISION:
        return f"keys are {sizes.dtype}; use one of {', '.join(_PRECISION)}"
    if sizes.head_dim < _SMALLEST or sizes.head_dim & (sizes.head_dim - 1):
        return f"head_dim={sizes.head_dim} is not a power of two from {_SMALLEST} on"
    if sizes.page % _SMALLEST:
        return f"a page of {sizes.page} slots is not a multiple of {_SMALLEST}"
    if sizes.window:
        return "it has no sliding windows"
    return None


def default_blocks(sizes: Problem) -> Blocks:
    """Sizes that compile without register spills on sm_80, sm_90a and sm_100a."""
    if sizes.dtype == "float32":
        return Blocks(rows=32, columns=32 if sizes.head_dim <= 64 else 16, warps=4, stages=2)
    return Blocks(rows=64, columns=64 if sizes.head_dim <= 128 else 32, warps=4, stages=2)


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
    out_dtype: Any,
    interpret: bool = False,
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
        out_dtype: dtype of the result.
        interpret: run on the CPU.
        blocks: fields of `Blocks` to replace.
    """
    if cached_key is None or cached_value is None:
        # Nothing is cached, so all lengths are 0 and this stand-in is never read.
        cached_key, cached_value = new_key[None], new_value[None]
    batch, heads, group, rows, width = query.shape
    sizes = problem.of(query, new_key, cached_key, work)
    tuned = dataclasses.replace(default_blocks(sizes), **(blocks or {}))
    tiling = _tiling(sizes, tuned, _PRECISION_ON_CPU if interpret else _PRECISION[sizes.dtype])
    shares = (tiling.shares, batch, heads, group * rows)
    mixed, peak, total = pl.pallas_call(
        functools.partial(_program, tiling=tiling),
        out_shape=[
            jax.ShapeDtypeStruct(shape, jnp.float32)
            for shape in ((*shares, width), shares, shares)
        ],
        grid=(batch * heads * tiling.row_tiles, tiling.shares),
        compiler_params=plgpu.CompilerParams(num_warps=tuned.warps, num_stages=tuned.stages),
        interpret=interpret,
        name="tree_attention",
    )(
        _Inputs(
            **_by_query_tile(work, rows // work.row_tile),
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


def _tiling(sizes: Problem, blocks: Blocks, precision: Any) -> _Tiling:
    query_tiles = sizes.rows // sizes.row_tile
    # Where all new rows share one list, a tile of queries may span several heads of the group.
    span = sizes.row_tile if query_tiles > 1 else sizes.group * sizes.rows
    rows = math.gcd(blocks.rows, span)
    row_tiles = sizes.group * sizes.rows // rows
    wanted = -(-blocks.programs // (sizes.batch * sizes.kv_heads * row_tiles))
    most = -(-sizes.page * sizes.pages_per_row // blocks.least_columns)
    return _Tiling(
        rows=rows,
        columns=math.gcd(blocks.columns, sizes.page),
        new_columns=math.gcd(blocks.columns, sizes.row_tile),
        row_tile=sizes.row_tile,
        row_tiles=row_tiles,
        query_tiles=query_tiles,
        heads=sizes.kv_heads,
        page=sizes.page,
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
