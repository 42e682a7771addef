"""Rows that come into a running batch, in place of finished ones."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdecode.errors import UnsupportedError


@functools.partial(jax.jit, donate_argnames="running")
def insert(running: Any, fresh: Any, places: Int[Array, "R"], num: Int[Array, ""]) -> Any:
    """A running batch with the first rows of a smaller one in it; what was there is gone.

    Args:
        running: arrays of B rows; donated, so that only the rows that come in are written.
        fresh: the same arrays of R < B rows.
        places: where they go.
        num: how many of them; the others are padding.

    Raises:
        UnsupportedError: rows share an array.
    """
    axes = jax.tree.map(axis, running, fresh)
    for array, found in zip(jax.tree.leaves(running), jax.tree.leaves(axes), strict=True):
        if found < 0:
            raise UnsupportedError(f"the rows of a batch share an array of shape {array.shape}")

    def put(i: Int[Array, ""], running: Any) -> Any:
        def move(old: Array, new: Array, axis: int) -> Array:
            row = jax.lax.dynamic_slice_in_dim(new, i, 1, axis)
            return jax.lax.dynamic_update_slice_in_dim(old, row, places[i], axis)

        return jax.tree.map(move, running, fresh, axes)

    return jax.lax.fori_loop(jnp.int32(0), num, put, running)


def axis(running: Any, fresh: Any) -> int:
    """The axis of the rows: the one where an array of B rows and one of R differ; -1 for none."""
    sizes = list(zip(running.shape, fresh.shape, strict=True))
    found = [axis for axis, (ours, theirs) in enumerate(sizes) if ours != theirs]
    return found[0] if len(found) == 1 else -1
