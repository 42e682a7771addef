"""The few operations whose best form depends on the hardware; everything else is plain jnp.

Products accumulate in float32 whatever the weights are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode.core import masks

# Queries per tile of causal attention; a tile does not compute the keys after its own end.
_TILE = 128


def embed(table: Float[Array, "V D"], tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    """Rows of the embedding table.

    16-bit rows are gathered as integers: XLA:CPU would first widen the whole table to float32.
    """
    if table.dtype.itemsize != 2:
        return table[tokens]
    bits = jax.lax.bitcast_convert_type(table, jnp.uint16)[tokens]
    return jax.lax.bitcast_convert_type(bits, table.dtype)


def linear(x: Float[Array, "*B I"], kernel: Float[Array, "I O"]) -> Float[Array, "*B O"]:
    """`x @ kernel` in float32 accumulation, returned in float32.

    XLA:CPU has no fast matrix-vector product for 16-bit weights: one row takes several times as
    long as two, so a lone row is doubled there.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(kernel.dtype)
    if rows.shape[0] == 1 and kernel.dtype.itemsize < 4:
        out = jax.lax.platform_dependent(rows, kernel, cpu=_two_rows, default=_product)
    else:
        out = _product(rows, kernel)
    return out.reshape(*x.shape[:-1], kernel.shape[1])


def linear_transposed(x: Float[Array, "*B I"], kernel: Float[Array, "O I"]) -> Float[Array, "*B O"]:
    """`x @ kernel.T` without materialising the transpose (the tied output head)."""
    rows = x.reshape(-1, x.shape[-1]).astype(kernel.dtype)
    if rows.shape[0] == 1 and kernel.dtype.itemsize < 4:
        out = jax.lax.platform_dependent(
            rows, kernel, cpu=_two_rows_transposed, default=_product_transposed
        )
    else:
        out = _product_transposed(rows, kernel)
    return out.reshape(*x.shape[:-1], kernel.shape[0])


def _product(x: Float[Array, "T I"], kernel: Float[Array, "I O"]) -> Float[Array, "T O"]:
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32)


def _two_rows(x: Float[Array, "1 I"], kernel: Float[Array, "I O"]) -> Float[Array, "1 O"]:
    return _product(jnp.concatenate([x, x]), kernel)[:1]


def _product_transposed(x: Float[Array, "T I"], kernel: Float[Array, "O I"]) -> Float[Array, "T O"]:
    contract = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(kernel, x, contract, preferred_element_type=jnp.float32).T


def _two_rows_transposed(
    x: Float[Array, "1 I"], kernel: Float[Array, "O I"]
) -> Float[Array, "1 O"]:
    return _product_transposed(jnp.concatenate([x, x]), kernel)[:1]


def attention(
    query: Float[Array, "B K G T d"],
    new_key: Float[Array, "B K d T"],
    new_value: Float[Array, "B K T d"],
    cached_key: Float[Array, "B K d S"] | None,
    cached_value: Float[Array, "B K S d"] | None,
    *,
    mask: masks.MaskProgram,
    window: int | Int[Array, ""],
) -> Float[Array, "B K G T d"]:
    """Softmax attention of T new rows over the cache and over themselves, as one law.

    The two parts are scored apart and normalised together, so the cache is read where it lies and
    new rows are never appended to it before they are accepted. Keys lie transposed, so that both
    products run along their operands' minor axis.

    Args:
        query: already scaled.
        new_key: keys of the new rows.
        new_value: values of the new rows.
        cached_key: keys of all slots, or None if no slot is visible.
        cached_value: values of all slots.
        mask: who sees whom.
        window: positions a query looks back; 0 means all.
    """
    rows = query.shape[3]
    if mask.rule != "causal" or rows <= _TILE:
        return _attend(query, new_key, new_value, cached_key, cached_value, mask, window)
    # Causal rows never see later ones: a tile of queries needs only the keys up to its own end.
    tiles = []
    for first in range(0, rows, _TILE):
        last = min(first + _TILE, rows)
        part = _attend(
            query[:, :, :, first:last],
            new_key[..., :last],
            new_value[:, :, :last],
            cached_key,
            cached_value,
            mask,
            window,
            first=first,
        )
        tiles.append(part)
    return jnp.concatenate(tiles, axis=3)


def _attend(
    query, new_key, new_value, cached_key, cached_value, mask, window, *, first: int = 0
) -> Float[Array, "B K G T d"]:
    """Attention of the queries from row `first` on over the new keys given and the cache."""
    num_slots = 0 if cached_key is None else cached_key.shape[3]
    over_cache, over_new = masks.dense(mask, num_slots=num_slots, window=window)
    queries, keys = slice(first, first + query.shape[3]), slice(new_key.shape[3])
    new_scores = _scores(query, new_key, over_new[:, queries, keys])
    peak = new_scores.max(-1, keepdims=True)
    if cached_key is None or cached_value is None:
        weights = _weights(new_scores, peak)
        return _mix(weights, new_value) / weights.sum(-1, keepdims=True)
    cache_scores = _scores(query, cached_key, over_cache[:, queries])
    peak = jnp.maximum(peak, cache_scores.max(-1, keepdims=True))
    new_weights, cache_weights = _weights(new_scores, peak), _weights(cache_scores, peak)
    total = new_weights.sum(-1, keepdims=True) + cache_weights.sum(-1, keepdims=True)
    return (_mix(new_weights, new_value) + _mix(cache_weights, cached_value)) / total


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
