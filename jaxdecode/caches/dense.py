"""Dense KV cache: `[layers, pages, kv_heads, page, head_dim]` with one page per row.

This is the paged layout with the identity page table: row b is page b, and a page is as long as
the canvas. Slots at or past a row's length hold garbage that no mask lets anyone see, so rejecting
a draft means doing nothing.

Cost: 2 x layers x B x kv_heads x slots x head_dim x itemsize bytes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode.core.protocols import Cache
from jaxdecode.core.types import pytree

Rows = tuple[Float[Array, "H B K T d"], Float[Array, "H B K T d"]]


@pytree
class State:
    """Keys and values of every layer, row, head and slot."""

    key: Float[Array, "H B K S d"]
    value: Float[Array, "H B K S d"]


def init(config: Any, batch: int, slots: int, dtype: Any) -> State:
    """An empty cache for a model config."""
    shape = (config.num_layers, batch, config.num_kv_heads, slots, config.head_dim)
    return State(key=jnp.zeros(shape, dtype), value=jnp.zeros(shape, dtype))


def read(state: State) -> Rows:
    """The arrays the target attends to."""
    return state.key, state.value


def write(state: State, rows: Rows, start: Int[Array, "B"]) -> State:
    """Writes T new rows of each batch row b to slots start[b] .. start[b] + T - 1.

    The caller guarantees that start + T fits: an update that does not fit would be moved back over
    committed slots.
    """

    def put(cache: Float[Array, "H B K S d"], new: Float[Array, "H B K T d"]):
        # One in-place slice per row: a vmapped update becomes a scatter, which is slower on CPU
        # and touches more than the rows on TPU.
        for b in range(cache.shape[1]):
            cache = jax.lax.dynamic_update_slice(cache, new[:, b : b + 1], (0, b, 0, start[b], 0))
        return cache

    return State(key=put(state.key, rows[0]), value=put(state.value, rows[1]))


def select(rows: Rows, path: Int[Array, "B P"]) -> Rows:
    """Keeps the rows of the path nodes, in path order."""
    if rows[0].shape[3] == 1:
        return rows
    index = path[None, :, None, :, None]
    return tuple(jnp.take_along_axis(part, index, axis=3) for part in rows)  # type: ignore


CACHE = Cache(init=init, read=read, write=write, select=select)
