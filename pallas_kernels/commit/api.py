"""Writing the accepted rows of a tree into the cache: validates, chooses, calls."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.commit import reference, tpu

Impl = Literal["auto", "tpu", "xla"]
IMPLS = ("auto", "tpu", "xla")


def commit(
    cached_key: Float[Array, "H P K d page"],
    cached_value: Float[Array, "H P K page d"],
    new_key: Float[Array, "H B K d T"],
    new_value: Float[Array, "H B K T d"],
    path: Int[Array, "B N"],
    start: Int[Array, "B"],
    num: Int[Array, "B"],
    *,
    table: Int[Array, "B M"] | None = None,
    impl: Impl = "auto",
    interpret: Any = False,
) -> tuple[Float[Array, "H P K d page"], Float[Array, "H P K page d"]]:
    """Row path[b, i] of the new rows goes to slot start[b] + i of row b, for i < num[b].

    Nothing else changes. Donate the caches, and they are updated in place.

    Args:
        cached_key: P pages of all H layers, keys transposed.
        cached_value: likewise.
        new_key: keys of the T new rows of all layers.
        new_value: values of the new rows; all rows finite, also those not accepted.
        path: accepted rows, in order.
        start: first slot to write; slots past the row's pages are dropped.
        num: rows to write; later entries of the path are ignored.
        table: physical pages of each row; None for a dense cache, where page b is row b. Pages
            that receive rows belong to one row.
        impl: "tpu" is the kernel, "xla" a scatter, "auto" the kernel on TPU if it supports these
            sizes, else "xla".
        interpret: True, or the parameters of an interpreter, to run the kernel on a CPU.

    Returns:
        The keys and the values of the cache.

    Raises:
        ValueError: shapes that do not belong together, or an unknown implementation.
        NotImplementedError: the kernel was asked for and cannot serve these sizes; says why.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl={impl!r} is not known; use one of {', '.join(IMPLS)}.")
    if table is None:
        table = jnp.arange(path.shape[0], dtype=jnp.int32)[:, None]
    _check(cached_key, cached_value, new_key, new_value, path, start, num, table)
    head_dim, page = cached_key.shape[3:]
    reason = supports(head_dim=head_dim, rows=new_key.shape[4], page=page, dtype=cached_key.dtype)
    where = {"path": path, "start": start, "num": num, "table": table}
    if impl == "xla" or (impl == "auto" and (reason or jax.default_backend() != "tpu")):
        return reference.commit(cached_key, cached_value, new_key, new_value, **where)
    if reason:
        raise NotImplementedError(f"impl='tpu' cannot serve this call: {reason}")
    return tpu.commit(cached_key, cached_value, new_key, new_value, **where, interpret=interpret)


def supports(*, head_dim: int, rows: int, page: int, dtype: Any) -> str | None:
    """Why the TPU kernel cannot write such rows; None if it can."""
    return tpu.refuses(head_dim, rows, page, dtype)


def _check(cached_key, cached_value, new_key, new_value, path, start, num, table) -> None:
    layers, pages, heads, width, page = cached_key.shape
    batch, rows = path.shape[0], new_key.shape[4]
    wanted = {
        "cached_value": (cached_value, (layers, pages, heads, page, width)),
        "new_key": (new_key, (layers, batch, heads, width, rows)),
        "new_value": (new_value, (layers, batch, heads, rows, width)),
        "start": (start, (batch,)),
        "num": (num, (batch,)),
        "table": (table, (batch, table.shape[1])),
    }
    for name, (array, shape) in wanted.items():
        if array.shape != shape:
            raise ValueError(
                f"{name} has shape {array.shape}, but cached_key {cached_key.shape} and path "
                f"{path.shape} need {shape}."
            )
    dtypes = {str(x.dtype) for x in (cached_key, cached_value, new_key, new_value)}
    if len(dtypes) > 1:
        raise ValueError(f"keys and values have dtypes {sorted(dtypes)}; use one.")
