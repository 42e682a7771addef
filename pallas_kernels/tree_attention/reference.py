"""Attention of new rows over a cache and over themselves, in plain jnp: the definition of truth."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def tree_attention(
    query: Float[Array, "B K G T d"],
    new_key: Float[Array, "B K d T"],
    new_value: Float[Array, "B K T d"],
    cached_key: Float[Array, "H P K d page"] | None,
    cached_value: Float[Array, "H P K page d"] | None,
    *,
    visible: Bool[Array, "B T T"],
    lengths: Int[Array, "B"],
    table: Int[Array, "B N"],
    layer: Int[Array, ""],
) -> Float[Array, "B K G T d"]:
    """One softmax over the slots below `lengths` and the visible new rows.

    Products and softmax are float32. Slots at or past the length may hold anything, NaN included.

    Args:
        query: already scaled.
        new_key: keys of the new rows, transposed.
        new_value: values of the new rows.
        cached_key: pages of all layers, or None.
        cached_value: likewise.
        visible: `[b, query, key]`, or one mask for all rows; every row sees at least itself.
        lengths: cached slots every new row sees.
        table: physical pages of each row, in order.
        layer: layer of the cache to read.
    """
    scores = _product("bkgtd,bkdc->bkgtc", query.astype(new_key.dtype), new_key)
    scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
    values = new_value.astype(jnp.float32)
    if cached_key is not None and cached_value is not None:
        key = _rows(cached_key, table, layer, slots=3)
        value = _rows(cached_value, table, layer, slots=2).astype(jnp.float32)
        seen = jnp.arange(key.shape[3]) < lengths[:, None]
        cached = _product("bkgtd,bkds->bkgts", query.astype(key.dtype), key)
        cached = jnp.where(seen[:, None, None, None], cached, -jnp.inf)
        scores = jnp.concatenate([scores, cached], axis=-1)
        values = jnp.concatenate([values, jnp.where(seen[:, None, :, None], value, 0)], axis=2)
    out = _product("bkgtc,bkcd->bkgtd", jax.nn.softmax(scores, axis=-1), values)
    return out.astype(query.dtype)


def _rows(
    cache: Float[Array, "H P K ..."], table: Int[Array, "B N"], layer: Int[Array, ""], *, slots: int
) -> Float[Array, "B K ..."]:
    """The pages of each row side by side along the axis of slots."""
    pages = jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)[table]
    pages = jnp.moveaxis(pages, 1, slots)
    return pages.reshape(*pages.shape[:slots], -1, *pages.shape[slots + 2 :])


def _product(spec: str, a: Array, b: Array) -> Float[Array, "..."]:
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32)
