"""Attention of new rows over a cache and over themselves: validates, chooses, pads, calls."""

import importlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from pallas_kernels import bits, device
from pallas_kernels.rules import Canvas
from pallas_kernels.tree_attention import problem, reference
from pallas_kernels.tree_attention.problem import Problem
from pallas_kernels.worklist import WorkList

Impl = Literal["auto", "tpu", "gpu", "xla"]
IMPLS = ("auto", "tpu", "gpu", "xla")


def tree_attention(
    query: Float[Array, "B K G T d"],
    new_key: Float[Array, "B K d T"],
    new_value: Float[Array, "B K T d"],
    cached_key: Float[Array, "H P K d page"] | None,
    cached_value: Float[Array, "H P K page d"] | None,
    work: WorkList,
    words: UInt32[Array, "B W T"],
    *,
    layer: int | Int[Array, ""] = 0,
    impl: Impl = "auto",
    interpret: Any = False,
    blocks: dict[str, int] | None = None,
) -> Float[Array, "B K G T d"]:
    """Softmax attention of T tree nodes over the cached slots and over their ancestors.

    Keys lie transposed. The cache holds all layers, and the kernel is told which one to read: a
    slice of it would be copied first. It is only read; new rows are written when accepted.

    Args:
        query: already scaled, T nodes of each row, G query heads per KV head.
        new_key: keys of the nodes.
        new_value: values of the nodes.
        cached_key: P pages of all H layers, or None if nothing is cached.
        cached_value: likewise.
        work: the plan for these lengths, from `plan(lengths, num_rows=T, ...)`.
        words: word [w, c] holds which of nodes 32w..32w+31 see node c; every node sees itself.
        layer: layer of the cache to read.
        impl: "tpu" and "gpu" are the kernels, "xla" plain jnp, "auto" the kernel of the default
            backend if it supports these sizes, else "xla".
        interpret: True, or the parameters of an interpreter, to run a kernel on a CPU.
        blocks: sizes that replace the tuned ones of the implementation, by name.

    Returns:
        The mixed values, in the query's dtype.

    Raises:
        ValueError: shapes that do not belong together, or an unknown implementation.
        NotImplementedError: the implementation asked for cannot serve these sizes; says why.
    """
    _check(query, new_key, new_value, cached_key, cached_value, work)
    batch, rows = query.shape[0], query.shape[3]
    if words.shape != (batch, bits.padded(rows) // bits.WORD, rows):
        raise ValueError(
            f"words have shape {words.shape}, but {batch} rows of {rows} nodes need "
            f"{(batch, bits.padded(rows) // bits.WORD, rows)}; pack them with bits.pack."
        )
    return _dispatch(
        query,
        new_key,
        new_value,
        cached_key,
        cached_value,
        work,
        bits.with_diagonal(words),
        canvas=None,
        layer=layer,
        impl=impl,
        interpret=interpret,
        blocks=blocks,
    )


def canvas_attention(
    query: Float[Array, "B K G T d"],
    new_key: Float[Array, "B K d T"],
    new_value: Float[Array, "B K T d"],
    cached_key: Float[Array, "H P K d page"] | None,
    cached_value: Float[Array, "H P K page d"] | None,
    work: WorkList,
    canvas: Canvas,
    *,
    layer: int | Int[Array, ""] = 0,
    impl: Impl = "auto",
    interpret: Any = False,
    blocks: dict[str, int] | None = None,
) -> Float[Array, "B K G T d"]:
    """Softmax attention of a canvas over the cached slots and over itself, by a static rule.

    As `tree_attention`, with the visible rows given by `canvas` (from `rules.canvas`), for which
    `work` was planned too. Tiles that the rule hides are neither read nor computed.
    """
    _check(query, new_key, new_value, cached_key, cached_value, work)
    if canvas.num_rows != query.shape[3] or canvas.row_tile != work.row_tile:
        raise ValueError(
            f"the canvas has {canvas.num_rows} rows in tiles of {canvas.row_tile}, the query "
            f"{query.shape[3]} rows and the plan tiles of {work.row_tile}; plan with this canvas."
        )
    return _dispatch(
        query,
        new_key,
        new_value,
        cached_key,
        cached_value,
        work,
        jnp.asarray(canvas.words),
        canvas=canvas,
        layer=layer,
        impl=impl,
        interpret=interpret,
        blocks=blocks,
    )


def supports(impl: Impl, sizes: Problem, device_kind: str | None = None) -> str | None:
    """Why an implementation cannot serve a problem; None if it can.

    Args:
        impl: "tpu", "gpu" or "xla".
        sizes: the sizes of the call, per device.
        device_kind: as `jax.Device.device_kind`, e.g. "TPU v5 lite"; None if unknown.
    """
    if impl == "xla":
        return None
    return _kernel(impl).refuses(sizes, device_kind)


def _dispatch(
    query,
    new_key,
    new_value,
    cached_key,
    cached_value,
    work,
    words,
    *,
    canvas: Canvas | None,
    layer,
    impl: Impl,
    interpret: Any,
    blocks: dict[str, int] | None,
) -> Float[Array, "B K G T d"]:
    if impl not in IMPLS:
        raise ValueError(f"impl={impl!r} is not known; use one of {', '.join(IMPLS)}.")
    rows, layer = query.shape[3], jnp.asarray(layer, jnp.int32)
    sizes = problem.of(query, new_key, cached_key, work, canvas=canvas is not None)
    impl = _choose(impl, sizes)
    if impl == "xla":
        visible = bits.unpack(words, rows)[:, :, :rows] if canvas is None else canvas.dense()[None]
        return reference.tree_attention(
            query,
            new_key,
            new_value,
            cached_key,
            cached_value,
            visible=jnp.asarray(visible),
            lengths=work.lengths,
            table=work.table,
            layer=layer,
        )
    reason = supports(impl, sizes, device.kind(impl))
    if reason:
        raise NotImplementedError(f"impl={impl!r} cannot serve this call: {reason}")
    fill = (0, sizes.padded_rows - rows)
    out = _kernel(impl).tree_attention(
        jnp.pad(query.astype(new_key.dtype), ((0, 0), (0, 0), (0, 0), fill, (0, 0))),
        jnp.pad(new_key, ((0, 0), (0, 0), (0, 0), fill)),
        jnp.pad(new_value, ((0, 0), (0, 0), fill, (0, 0))),
        cached_key,
        cached_value,
        work,
        words,
        layer,
        sizes=sizes,
        out_dtype=query.dtype,
        interpret=interpret,
        blocks=blocks,
    )
    return out[:, :, :, :rows]


def _kernel(impl: str) -> Any:
    """The module of a kernel, imported when it is asked for."""
    return importlib.import_module(f"pallas_kernels.tree_attention.{impl}")


def _choose(impl: Impl, sizes: Problem) -> Impl:
    if impl != "auto":
        return impl
    backend = jax.default_backend()
    if backend not in ("tpu", "gpu"):
        return "xla"
    return "xla" if supports(backend, sizes, device.kind(backend)) else backend


def _check(query, new_key, new_value, cached_key, cached_value, work) -> None:
    batch, heads, _, rows, width = query.shape
    wanted = {
        "new_key": (new_key, (batch, heads, width, rows)),
        "new_value": (new_value, (batch, heads, rows, width)),
        "work.lengths": (work.lengths, (batch,)),
    }
    if (cached_key is None) != (cached_value is None):
        raise ValueError("cached_key and cached_value must both be given or both be None.")
    if cached_key is not None:
        layers, pages, _, _, page = cached_key.shape
        wanted["cached_key"] = (cached_key, (layers, pages, heads, width, page))
        wanted["cached_value"] = (cached_value, (layers, pages, heads, page, width))
    for name, (array, shape) in wanted.items():
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, but the query needs {shape}.")
    dtypes = {x.dtype for x in (new_key, new_value, cached_key, cached_value) if x is not None}
    if len(dtypes) > 1:
        raise ValueError(f"keys and values have dtypes {sorted(map(str, dtypes))}; use one.")
