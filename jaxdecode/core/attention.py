"""Attention of new rows over the cache and over themselves, by XLA or by a kernel.

This module alone imports `pallas_kernels`. Kernels serve the steps of the loop; prefill, whose
chunks have more rows than a kernel holds, is XLA's on every device.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxdecode.core import masks, whole_texts
from jaxdecode.core.protocols import Rows
from jaxdecode.core.types import pytree
from jaxdecode.dist import axes, place, rules
from jaxdecode.errors import InputError, UnsupportedError
from pallas_kernels import device, worklist
from pallas_kernels.tree_attention import api as kernels
from pallas_kernels.tree_attention import blocks
from pallas_kernels.tree_attention.problem import Problem

IMPLS = ("auto", "xla", "tpu", "gpu")
# Most rows that a kernel is given; chunks of prefill are longer.
MAX_ROWS = 256
# Fewer rows are a step of decoding, where a loop over blocks would cost more than it saves.
_FEW = 16
# Queries per tile of XLA's causal attention; a tile does not compute the keys after its own end.
_TILE = 128
# Cached keys that a tile takes in at a time.
_BLOCK = 512
_LANES = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """Who computes attention; hashable.

    Attributes:
        impl: "xla", or the kernel for "tpu" or "gpu".
        mesh: devices that KV heads and rows are split over.
        interpret: run the kernel in an interpreter on the CPU; for tests.
        whole_texts: causal texts of which nothing is cached go through the TPU kernel that JAX has
            for them, if their length allows it; it has a gradient, as the others have not.
    """

    impl: Literal["xla", "tpu", "gpu"] = "xla"
    mesh: Mesh | None = None
    interpret: Any = False
    whole_texts: bool = False


XLA = Backend()


class View(NamedTuple):
    """What one layer is given of the cache.

    Attributes:
        key: keys of the layer, or of all layers.
        value: values likewise.
        layer: which one, if they are of all layers: a kernel reads the whole cache in place,
            where a slice would be copied first.
    """

    key: Float[Array, "B K d S"] | Float[Array, "H B K d S"]
    value: Float[Array, "B K S d"] | Float[Array, "H B K S d"]
    layer: Int[Array, ""] | None = None


@pytree
class Plan:
    """A mask program in the form that kernels read; the same for all layers.

    Attributes:
        work: blocks to visit; with a mesh, one list per group of rows.
        words: packed bits of who sees whom among the new rows.
    """

    work: Any
    words: Any


def choose(impl: str, config: Any, kv_dtype: Any, mesh: Mesh | None) -> Backend:
    """The backend for a model.

    Args:
        impl: "xla", "tpu", "gpu", or "auto": the kernel of the devices if it can serve the model,
            else XLA.
        config: the model's, with the KV heads it has there.
        kv_dtype: dtype of keys and values.
        mesh: devices it is split over; None for this program's own.

    Raises:
        InputError: impl is not known.
        UnsupportedError: the kernel asked for is not for these devices, or cannot serve this
            model; says why.
    """
    if impl not in IMPLS:
        raise InputError(f"attention={impl!r} is not known; use one of {', '.join(IMPLS)}.")
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    platform = "gpu" if platform == "cuda" else platform
    if impl == "auto":
        has_kernel = platform in IMPLS and not refuses(platform, config, kv_dtype, mesh)
        impl = platform if has_kernel else "xla"
    elif impl != "xla":
        reason = refuses(impl, config, kv_dtype, mesh)
        if impl != platform:
            reason = f"it runs on {impl}, but the devices are {platform}"
        if reason:
            raise UnsupportedError(
                f"attention={impl!r} cannot be used: {reason}; use attention='auto' or 'xla'."
            )
    return Backend(impl=impl, mesh=mesh)  # type: ignore[arg-type]


def for_training(config: Any, mesh: Mesh | None) -> Backend:
    """The backend of forward passes that have a gradient.

    Args:
        config: of the model.
        mesh: devices it is split over; None for this program's own.
    """
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    if platform != "tpu" or any(config.layer_windows):
        return XLA
    return Backend(mesh=mesh, whole_texts=True)


def refuses(impl: str, config: Any, kv_dtype: Any, mesh: Mesh | None) -> str | None:
    """Why a kernel cannot serve a model; None if it can."""
    if any(config.layer_windows):
        return "some of its layers have a sliding window, which kernels do not mask"
    sizes = Problem(
        batch=1,
        kv_heads=_own_heads(config.num_kv_heads, mesh),
        group=config.group_size,
        rows=1,
        head_dim=config.head_dim,
        dtype=jnp.dtype(kv_dtype).name,
        page=_LANES,
        page_block=_LANES,
    )
    return kernels.supports(impl, sizes, _kind(impl, mesh))  # type: ignore[arg-type]


def _own_heads(num_kv_heads: int, mesh: Mesh | None) -> int:
    """KV heads of one device."""
    return num_kv_heads if mesh is None else num_kv_heads // mesh.shape[rules.RULES["kv_heads"]]


def device_kind(backend: Backend) -> str | None:
    """Kind of the devices that a backend serves, which need not be here; None if unknown."""
    return _kind(backend.impl, backend.mesh)


def _kind(impl: str, mesh: Mesh | None) -> str | None:
    return device.kind(impl) if mesh is None else mesh.devices.flat[0].device_kind


def plan(backend: Backend, mask: masks.MaskProgram, cached: Rows | None) -> masks.MaskProgram:
    """The program with the kernel's plan in it, where a kernel will run."""
    rows = mask.positions.shape[1]
    if backend.impl == "xla" or cached is None or rows > MAX_ROWS:
        return mask
    # Kernels see every cached slot below a count, and could not leave out what rows stand for.
    if mask.replaced is not None or mask.scattered:
        return mask
    key = jax.tree.leaves(cached[0])[0]
    heads, width, slots = key.shape[-3:]
    heads, kind = _own_heads(heads, backend.mesh), device_kind(backend)
    block = blocks.page_block(slots, heads, width, key.dtype.itemsize, kind)
    list_work = functools.partial(worklist.plan, num_rows=rows, page=slots, page_block=block)
    words = mask.ancestors
    if words is None:
        words = masks.pack_ancestors(masks.dense(mask, num_slots=0, window=0)[1])
    if backend.mesh is None:
        return dataclasses.replace(mask, plan=Plan(work=list_work(mask.cached), words=words))

    def of_shard(lengths):
        # Every group of rows has its list, so all of its arrays get an axis of groups.
        return jax.tree.map(lambda leaf: leaf[None], list_work(lengths))

    by_rows = rules.spec(("rows",))
    work = place.per_device(of_shard, backend.mesh, in_specs=by_rows, out_specs=by_rows)(
        mask.cached
    )
    return dataclasses.replace(mask, plan=Plan(work=work, words=words))


def per_layer(backend: Backend, cached: Rows | None) -> Any:
    """What a scan over layers slices of a stacked cache."""
    if cached is None or backend.impl == "xla":
        return cached
    return jnp.arange(cached[0].shape[0], dtype=jnp.int32)  # type: ignore[union-attr]


def view(cached: Rows | None, own: Any) -> View | None:
    """A layer's view of a stacked cache, from its slice of `per_layer`."""
    if cached is None or isinstance(own, tuple):
        return None if own is None else View(*own)
    key, value = cached
    return View(key, value, own)  # type: ignore[arg-type]


def attention(
    query: Float[Array, "B K G T d"],
    new_key: Float[Array, "B K d T"],
    new_value: Float[Array, "B K T d"],
    cached: View | None,
    *,
    mask: masks.MaskProgram,
    window: int | Int[Array, ""],
    backend: Backend = XLA,
) -> Float[Array, "B K G T d"]:
    """Softmax attention of T new rows over the cache and over themselves, as one law.

    The two parts are scored apart and normalised together, so the cache is read where it lies and
    new rows are never appended to it before they are accepted. Keys lie transposed, so that both
    products run along their operands' minor axis.

    Args:
        query: already scaled.
        new_key: keys of the new rows.
        new_value: values of the new rows.
        cached: keys and values of all slots, or None if no slot is visible.
        mask: who sees whom, with the kernel's plan if there is one.
        window: positions a query looks back; 0 means all.
        backend: who computes it.
    """
    if mask.plan is not None:
        assert cached is not None
        return _by_kernel(backend, query, new_key, new_value, cached, mask.plan)
    rows = query.shape[3]
    if backend.whole_texts and _is_whole(mask, cached, rows):
        return _by_texts(backend, query, new_key, new_value, mask.segments)
    key, value = _slices(cached)
    if mask.rule != "causal" or rows < _FEW:
        return _attend(query, new_key, new_value, key, value, mask, window)
    # Causal rows never see later ones: a tile of queries needs only the keys up to its own end.
    tiles = []
    for first in range(0, rows, _TILE):
        last = min(first + _TILE, rows)
        tile = _Tile(query[:, :, :, first:last], mask, window, first)
        seen = tile.over_new(new_key[..., :last], new_value[:, :, :last])
        if key is not None and value is not None:
            seen = tile.over_cache(key, value, seen)
        tiles.append(seen.mixed / seen.total)
    return jnp.concatenate(tiles, axis=3)


def _by_kernel(backend: Backend, query, new_key, new_value, cached: View, plan: Plan):
    key, value, layer = cached
    if layer is None:
        key, value, layer = key[None], value[None], jnp.int32(0)
    run = functools.partial(_kernel, impl=backend.impl, interpret=backend.interpret)
    if backend.mesh is None:
        return run(query, new_key, new_value, key, value, plan.work, plan.words, layer=layer)

    def of_shard(query, new_key, new_value, key, value, work, words, layer):
        work = jax.tree.map(lambda leaf: leaf[0], work)
        return run(query, new_key, new_value, key, value, work, words, layer=layer)

    rows, heads = rules.spec(("rows",)), rules.spec(("rows", "kv_heads"))
    whole = rules.spec(axes.cache(5))
    specs = (heads, heads, heads, whole, whole, rows, rows, PartitionSpec())
    apply = place.per_device(of_shard, backend.mesh, in_specs=specs, out_specs=heads)
    return apply(query, new_key, new_value, key, value, plan.work, plan.words, layer)


def _is_whole(mask: masks.MaskProgram, cached: View | None, rows: int) -> bool:
    causal = mask.rule == "causal" and cached is None
    return causal and whole_texts.tile_of(rows) is not None


def _by_texts(backend: Backend, query, new_key, new_value, segments):
    run = functools.partial(whole_texts.attention, interpret=backend.interpret)
    if backend.mesh is None:
        return run(query, new_key, new_value, segments)
    rows, heads = rules.spec(("rows",)), rules.spec(("rows", "kv_heads"))
    apply = place.per_device(
        run, backend.mesh, in_specs=(heads, heads, heads, rows), out_specs=heads
    )
    return apply(query, new_key, new_value, segments)


def _kernel(*args: Any, **named: Any) -> Array:
    try:
        return kernels.tree_attention(*args, **named)
    except NotImplementedError as error:
        raise UnsupportedError(f"{error} Or load the model with attention='xla'.") from error


def _slices(cached: View | None):
    if cached is None:
        return None, None
    if cached.layer is None:
        return cached.key, cached.value
    return cached.key[cached.layer], cached.value[cached.layer]


def _attend(
    query, new_key, new_value, cached_key, cached_value, mask, window
) -> Float[Array, "B K G T d"]:
    """Attention over the new keys and the cache, every score of both at once."""
    num_slots = 0 if cached_key is None else cached_key.shape[3]
    over_cache, over_new = masks.dense(mask, num_slots=num_slots, window=window)
    new_scores = _scores(query, new_key, over_new)
    peak = new_scores.max(-1, keepdims=True)
    if cached_key is None or cached_value is None:
        weights = _weights(new_scores, peak)
        return _mix(weights, new_value) / weights.sum(-1, keepdims=True)
    cache_scores = _scores(query, cached_key, over_cache)
    peak = jnp.maximum(peak, cache_scores.max(-1, keepdims=True))
    new_weights, cache_weights = _weights(new_scores, peak), _weights(cache_scores, peak)
    total = new_weights.sum(-1, keepdims=True) + cache_weights.sum(-1, keepdims=True)
    return (_mix(new_weights, new_value) + _mix(cache_weights, cached_value)) / total


class _Seen(NamedTuple):
    """Softmax over some of the keys, not yet divided by its sum."""

    peak: Float[Array, "B K G T 1"]
    total: Float[Array, "B K G T 1"]
    mixed: Float[Array, "B K G T d"]


class _Tile(NamedTuple):
    """Some of the queries of a chunk: those from row `first` on."""

    query: Float[Array, "B K G T d"]
    mask: masks.MaskProgram
    window: int | Int[Array, ""]
    first: int

    def over_new(self, key, value) -> _Seen:
        """Over the chunk's own keys, as far as they are given."""
        _, visible = masks.dense(self.mask, num_slots=0, window=self.window)
        scores = _scores(self.query, key, visible[:, self._rows, : key.shape[3]])
        peak = scores.max(-1, keepdims=True)
        weights = _weights(scores, peak)
        return _Seen(peak, weights.sum(-1, keepdims=True), _mix(weights, value))

    def over_cache(self, key, value, seen: _Seen) -> _Seen:
        """Over the cache too, block by block: free slots, most of a new cache, cost nothing."""
        width = min(_BLOCK, key.shape[3])

        def take(block, seen):
            first = block * width
            # The last block would pass the end; what it then repeats is hidden.
            start = jnp.minimum(first, key.shape[3] - width)
            keys, values = (
                jax.lax.dynamic_slice_in_dim(rows, start, width, axis)
                for rows, axis in ((key, 3), (value, 2))
            )
            visible, _ = masks.dense(
                self.mask, num_slots=width, window=self.window, first_slot=start
            )
            visible &= start + jnp.arange(width) >= first
            scores = _scores(self.query, keys, visible[:, self._rows])
            peak = jnp.maximum(seen.peak, scores.max(-1, keepdims=True))
            weights, shrink = _weights(scores, peak), jnp.exp(seen.peak - peak)
            return _Seen(
                peak,
                seen.total * shrink + weights.sum(-1, keepdims=True),
                seen.mixed * shrink + _mix(weights, values),
            )

        num_blocks = (self.mask.cached.max() + width - 1) // width
        return jax.lax.fori_loop(0, num_blocks, take, seen)

    @property
    def _rows(self) -> slice:
        return slice(self.first, self.first + self.query.shape[3])


def _weights(scores, peak):
    weights = jnp.exp(scores - peak)
    # Kept in memory where there are many, else XLA computes the exponentials once per use.
    return jax.lax.optimization_barrier(weights) if weights.shape[3] > 1 else weights


def _scores(query, key, visible):
    batch, heads, group, rows, width = query.shape
    flat = query.reshape(batch, heads, group * rows, width).astype(key.dtype)
    scores = jnp.einsum("bkmd,bkds->bkms", flat, key, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, group, rows, -1)
    return jnp.where(visible[:, None, None], scores, -jnp.inf)


def _mix(weights, value):
    batch, heads, group, rows, num = weights.shape
    flat = weights.reshape(batch, heads, group * rows, num).astype(value.dtype)
    mixed = jnp.einsum("bkms,bksd->bkmd", flat, value, preferred_element_type=jnp.float32)
    return mixed.reshape(batch, heads, group, rows, -1)
