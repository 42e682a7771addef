"""No cache: every step takes the whole text in again.

Exactness: the target's own law of every slot, whatever has been decided since the last step.
Cost: no memory; a forward pass over the text per step.
"""

import functools
from typing import Any

from jax.sharding import Mesh
from jaxtyping import Array, Int

from jaxdecode.core.protocols import Cache, Rows


@functools.cache
def make(mesh: Mesh | None = None) -> Cache:
    """The cache that holds nothing."""
    del mesh
    return Cache(init=_init, read=_read, write=_write, put=_put, select=_select)


def _init(config: Any, batch: int, slots: int, dtype: Any, *, stacked: bool) -> tuple[()]:
    del config, batch, slots, dtype, stacked
    return ()


def _read(state: tuple[()]) -> None:
    del state


def _write(
    state: tuple[()], rows: Rows, start: Int[Array, "B"], num: Int[Array, "B"] | None = None
) -> tuple[()]:
    del rows, start, num
    return state


def _put(state: tuple[()], rows: Rows, slots: Int[Array, "B T"]) -> tuple[()]:
    del rows, slots
    return state


def _select(rows: Rows, path: Int[Array, "B P"]) -> Rows:
    raise NotImplementedError("a tree's rows are cached, so trees need a cache")
