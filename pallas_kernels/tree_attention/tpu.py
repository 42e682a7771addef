"""Tree and canvas attention on TPU: one grid step per item of the work list (Mosaic).

The grid is (groups of KV heads, items). Items of one tile of queries follow each other, so the
maximum, sum and mix of the online softmax stay in scratch memory between them. Maxima are kept
replicated over the 128 lanes and sums as 128 partial sums per row: no step broadcasts a single
lane, and sums are reduced over lanes once per tile of queries, not once per block.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, UInt32

from pallas_kernels import bits, device, worklist
from pallas_kernels.tree_attention import blocks as tuned
from pallas_kernels.tree_attention.problem import Problem

_LANES = 128
_DTYPES = ("bfloat16", "float32")
# Scalar memory is 1 MiB, and an item has nine integers.
_MAX_ITEMS = 24_000


class _Scalars(NamedTuple):
    """What index maps and the kernel read from scalar memory; names as in `WorkList`."""

    row: Any
    query_tile: Any
    new_tile: Any
    mask_tile: Any
    page: Any
    block: Any
    kind: Any
    limit: Any
    edge: Any
    layer: Any


def refuses(sizes: Problem, device_kind: str | None) -> str | None:
    """Why this kernel cannot serve a problem; None if it can."""
    if sizes.window:
        return f"window={sizes.window}: sliding windows are not in the work list; use 'xla'."
    if sizes.dtype not in _DTYPES:
        extra = " TPU v4 also lacks int8 products." if device_kind == "TPU v4" else ""
        return f"keys of dtype {sizes.dtype}; it takes {' or '.join(_DTYPES)}.{extra}"
    if sizes.head_dim % 8:
        return f"head_dim={sizes.head_dim} is not a multiple of 8 sublanes."
    if sizes.num_items > _MAX_ITEMS:
        return (
            f"the work list may have {sizes.num_items} items, over the {_MAX_ITEMS} that fit "
            f"scalar memory; raise page_block ({sizes.page_block}) or split the batch."
        )
    need, limit = tuned.vmem_bytes(sizes, heads=1), tuned.of(device_kind).vmem_bytes
    if need > limit:
        return (
            f"one KV head needs about {need / 2**20:.1f} MiB of vector memory, over the budget of "
            f"{limit / 2**20:.1f} MiB; use fewer rows ({sizes.rows}), a smaller page_block "
            f"({sizes.page_block}), or for a canvas a smaller row_tile."
        )
    return None


def tree_attention(
    query: Float[Array, "B K G T d"],
    new_key: Float[Array, "B K d T"],
    new_value: Float[Array, "B K T d"],
    cached_key: Float[Array, "H P K d page"] | None,
    cached_value: Float[Array, "H P K page d"] | None,
    work: worklist.WorkList,
    words: UInt32[Array, "N W R"],
    layer: Int[Array, ""],
    *,
    sizes: Problem,
    out_dtype: Any,
    interpret: Any = False,
    blocks: dict[str, int] | None = None,
) -> Float[Array, "B K G T d"]:
    """The kernel's call. Arguments as in `api`, with T padded to whole tiles of queries.

    Args:
        query: already scaled, in the dtype of the keys.
        new_key: keys of the new rows.
        new_value: values of the new rows; those of padding rows are finite.
        cached_key: pages of all layers, or None.
        cached_value: likewise.
        work: the plan.
        words: tiles of packed words, named by `work.mask_tile`.
        layer: layer of the cache to read.
        sizes: the sizes of the call.
        out_dtype: dtype of the result.
        interpret: as in `pl.pallas_call`.
        blocks: `heads`, the KV heads of a grid step, in place of the tuned number.
    """
    if cached_key is None or cached_value is None:
        # No cache is a cache of one page that no item names.
        pages = (1, 1, sizes.kv_heads)
        cached_key = jnp.zeros((*pages, sizes.head_dim, work.page_block), new_key.dtype)
        cached_value = jnp.zeros((*pages, work.page_block, sizes.head_dim), new_key.dtype)
    if _slots_on_lanes(sizes):
        cached_value = cached_value.swapaxes(3, 4)
    heads = tuned.heads(sizes, blocks, device.kind("tpu"))
    group = tuned.group_part(sizes)
    parts = query.reshape(sizes.batch, -1, group, *query.shape[3:])
    axes = jax.typeof(query).manual_axis_type
    call = pl.pallas_call(
        functools.partial(_kernel, slots=int(_slots_on_lanes(sizes))),
        out_shape=jax.ShapeDtypeStruct(parts.shape, out_dtype, manual_axis_type=axes),
        grid_spec=_grid(sizes, work, heads),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=_cost(sizes),
        interpret=interpret,
        name="tree_attention",
    )
    fields = [getattr(work, name) for name in _Scalars._fields[:-1]]
    scalars = _Scalars(*fields, layer=layer[None])
    out = call(*scalars, parts, new_key, new_value, words, cached_key, cached_value)
    return out.reshape(query.shape)


def _slots_on_lanes(sizes: Problem) -> bool:
    """Whether the compiler lays values out as [d, page]: it does where d would leave lanes empty.

    Read so, they are not copied to another layout on every call.
    """
    return sizes.head_dim % _LANES != 0


def _grid(sizes: Problem, work: worklist.WorkList, heads: int) -> pltpu.PrefetchScalarGridSpec:
    """Blocks of one grid step: `heads` KV heads of one item, their query heads in parts."""
    width, tile, block = sizes.head_dim, sizes.row_tile, work.page_block
    group = tuned.group_part(sizes)
    parts = heads * sizes.group // group

    def spec(shape, index):
        return pl.BlockSpec(shape, lambda h, i, *refs: index(h, i, _Scalars(*refs)))

    query = spec(
        (1, parts, group, tile, width), lambda h, i, s: (s.row[i], h, 0, s.query_tile[i], 0)
    )
    page_key = spec(
        (1, 1, heads, width, block), lambda h, i, s: (s.layer[0], s.page[i], h, 0, s.block[i])
    )
    page_value = spec(
        (1, 1, heads, block, width), lambda h, i, s: (s.layer[0], s.page[i], h, s.block[i], 0)
    )
    return pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(_Scalars._fields),
        grid=(sizes.kv_heads // heads, work.count),
        in_specs=[
            query,
            spec((1, heads, width, tile), lambda h, i, s: (s.row[i], h, 0, s.new_tile[i])),
            spec((1, heads, tile, width), lambda h, i, s: (s.row[i], h, s.new_tile[i], 0)),
            spec((1, tile // bits.WORD, tile), lambda h, i, s: (s.mask_tile[i], 0, 0)),
            page_key,
            page_key if _slots_on_lanes(sizes) else page_value,
        ],
        out_specs=query,
        scratch_shapes=[
            pltpu.VMEM((parts, group * tile, _LANES), jnp.float32),
            pltpu.VMEM((parts, group * tile, _LANES), jnp.float32),
            pltpu.VMEM((parts, group * tile, width), jnp.float32),
        ],
    )


def _kernel(*refs, slots: int) -> None:
    """One item. `slots` is the axis of slots in a head's cached values."""
    num_scalars = len(_Scalars._fields)
    work = _Scalars(*refs[:num_scalars])
    query, new_key, new_value, words, page_key, page_value, out, *state = refs[num_scalars:]
    item = pl.program_id(1)
    kind, edge = work.kind[item], work.edge[item]
    parts, heads = query.shape[1], new_key.shape[1]

    def each_part(body):
        """Runs body(part, its KV head)."""
        per_head = jnp.int32(parts // heads)
        # lax.div: the sign handling of // asks for the local chip, which a compile host lacks.
        jax.lax.fori_loop(0, parts, lambda n, _: body(n, jax.lax.div(n, per_head)), None)

    @pl.when(edge & worklist.FIRST != 0)
    def _start():
        peak, total, mixed = state
        peak[...] = jnp.full_like(peak, -jnp.inf)
        total[...] = jnp.zeros_like(total)
        mixed[...] = jnp.zeros_like(mixed)

    @pl.when(kind == worklist.NEW_WORDS)
    def _new_words():
        sees = _expand(words[0])

        @each_part
        def _(n, head):
            scores = _scores(query[0, n], new_key[0, head])
            by_group = scores.reshape(-1, *sees.shape)
            scores = jnp.where(sees, by_group, -jnp.inf).reshape(scores.shape)
            _accumulate(scores, new_value[0, head], n, *state)

    @pl.when(kind == worklist.NEW_FULL)
    def _new_full():
        @each_part
        def _(n, head):
            _accumulate(_scores(query[0, n], new_key[0, head]), new_value[0, head], n, *state)

    @pl.when(kind == worklist.CACHE_FULL)
    def _cache_full():
        @each_part
        def _(n, head):
            scores = _scores(query[0, n], page_key[0, 0, head])
            _accumulate(scores, page_value[0, 0, head], n, *state, slots=slots)

    @pl.when(kind == worklist.CACHE_LIMIT)
    def _cache_limit():
        limit = work.limit[item]

        @each_part
        def _(n, head):
            # Past the limit lies anything, NaN included: a zero weight would not silence it.
            scores = _below(limit, _scores(query[0, n], page_key[0, 0, head]), 1, -jnp.inf)
            value = _below(limit, page_value[0, 0, head], slots, 0)
            _accumulate(scores, value, n, *state, slots=slots)

    @pl.when(edge & worklist.LAST != 0)
    def _finish():
        _, total, mixed = state

        @each_part
        def _(n, _):
            mix = mixed[n] / total[n].sum(-1, keepdims=True)
            out[0, n] = mix.reshape(out.shape[2:]).astype(out.dtype)


def _scores(query: Float[Array, "G T d"], key: Float[Array, "d C"]) -> Float[Array, "R C"]:
    return _dot(query.reshape(-1, query.shape[-1]), key)


def _dot(a: Array, b: Array, axis: int = 0) -> Float[Array, "R C"]:
    """Product over the last axis of `a` and an axis of `b`."""
    # One bfloat16 pass is exact for bfloat16 operands; float32 ones need all their bits.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    contract = (((1,), (axis,)), ((), ()))
    return jax.lax.dot_general(
        a, b, contract, precision=precision, preferred_element_type=jnp.float32
    )


def _accumulate(scores: Float[Array, "R C"], value: Array, n, peak, total, mixed, *, slots=0):
    """One block of the online softmax of part n."""
    before = peak[n]
    after = jnp.maximum(before, scores.max(-1, keepdims=True))
    shrink = jnp.exp(before - after)
    weights = jnp.exp(scores - _lanes(after, scores.shape[1]))
    peak[n] = after
    total[n] = total[n] * shrink + _partial_sums(weights)
    mix = _dot(weights.astype(value.dtype), value, slots)
    mixed[n] = mixed[n] * _lanes(shrink, mix.shape[1]) + mix


def _lanes(x: Float[Array, "R 128"], width: int) -> Float[Array, "R C"]:
    """A lane-replicated column at another width, by copies of whole registers."""
    copies = -(-width // _LANES)
    return (jnp.concatenate([x] * copies, axis=1) if copies > 1 else x)[:, :width]


def _partial_sums(weights: Float[Array, "R C"]) -> Float[Array, "R 128"]:
    """128 numbers per row with the same sum as the weights."""
    rows, width = weights.shape
    if width % _LANES:
        return jnp.broadcast_to(weights.sum(-1, keepdims=True) / _LANES, (rows, _LANES))
    return functools.reduce(jnp.add, jnp.split(weights, width // _LANES, axis=1))


def _below(limit: Int[Array, ""], x: Array, axis: int, other: float) -> Array:
    """`x` up to an index of an axis, `other` from there on."""
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return jnp.where(index < limit, x, jnp.asarray(other, x.dtype))


def _expand(words: UInt32[Array, "W T"]) -> Array:
    """Packed words as a `[T, T]` mask: each word repeated over 32 sublanes, and shifted."""
    width = words.shape[1]
    rows = [jnp.broadcast_to(words[w : w + 1], (bits.WORD, width)) for w in range(words.shape[0])]
    shift = jax.lax.broadcasted_iota(jnp.uint32, (len(rows) * bits.WORD, width), 0) % bits.WORD
    return (jnp.concatenate(rows) >> shift) & 1 != 0


def _cost(sizes: Problem) -> pl.CostEstimate:
    """An upper bound for the compiler's scheduler: all rows of the batch full."""
    slots = sizes.page * sizes.pages_per_row
    rows = sizes.batch * sizes.kv_heads * sizes.group * sizes.padded_rows
    columns = slots + sizes.padded_rows
    cached = 2 * sizes.batch * sizes.kv_heads * columns * sizes.head_dim
    return pl.CostEstimate(
        flops=4 * rows * columns * sizes.head_dim,
        bytes_accessed=(cached + 2 * rows * sizes.head_dim) * sizes.itemsize,
        transcendentals=rows * columns,
    )
