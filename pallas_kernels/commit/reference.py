"""The commit in plain jnp: one scatter, whatever the pages; the definition of truth."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
) -> tuple[Float[Array, "H P K d page"], Float[Array, "H P K page d"]]:
    """Row path[b, i] of the new rows goes to slot start[b] + i of row b, for i < num[b].

    Args:
        cached_key: pages of all layers.
        cached_value: likewise.
        new_key: keys of the new rows of all layers.
        new_value: values of the new rows.
        path: accepted rows, in order.
        start: first slot to write.
        num: rows to write; later entries of the path are ignored.
        table: physical pages of each row, in order.
    """
    page = cached_key.shape[4]
    order = jnp.arange(path.shape[1])
    slot = start[:, None] + order
    pages = jnp.take_along_axis(table, slot // page, axis=1, mode="clip")
    # Past the last page is nowhere: such rows are dropped.
    pages = jnp.where((order < num[:, None]) & (slot < page * table.shape[1]), pages, 2**30)
    rows = jnp.arange(path.shape[0])[:, None]
    keys = new_key[:, rows, :, :, path].astype(cached_key.dtype)
    values = new_value[:, rows, :, path].astype(cached_value.dtype)
    return (
        cached_key.at[:, pages, :, :, slot % page].set(keys, mode="drop"),
        cached_value.at[:, pages, :, slot % page].set(values, mode="drop"),
    )
