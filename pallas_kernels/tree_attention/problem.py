"""The sizes of one call: what implementations judge, tuned data is chosen for, and tests list."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from pallas_kernels import bits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Sizes of one attention call, per device.

    Attributes:
        batch: rows of the batch.
        kv_heads: KV heads.
        group: query heads per KV head.
        rows: new rows (tree nodes, or the rows of a canvas).
        head_dim: width of a head.
        dtype: name of the dtype of keys and values.
        page: slots of a page; of the whole row in a dense cache; 0 without a cache.
        pages_per_row: pages of a row's table; 1 in a dense cache.
        page_block: slots of a block of the cache.
        row_tile: rows of a tile of queries; all of them, padded to 32, for trees.
        layers: layers in the cache.
        window: positions a query looks back; 0 means all.
        canvas: the visible rows follow a static rule cut into tiles, not the words of each row.
    """

    batch: int
    kv_heads: int
    group: int
    rows: int
    head_dim: int
    dtype: str
    page: int
    page_block: int
    pages_per_row: int = 1
    row_tile: int = 0
    layers: int = 1
    window: int = 0
    canvas: bool = False

    def __post_init__(self):
        if not self.row_tile:
            object.__setattr__(self, "row_tile", bits.padded(self.rows))

    @property
    def itemsize(self) -> int:
        """Bytes of a cached number."""
        return jnp.dtype(self.dtype).itemsize

    @property
    def padded_rows(self) -> int:
        """New rows after padding to whole tiles."""
        return -(-self.rows // self.row_tile) * self.row_tile

    @property
    def num_items(self) -> int:
        """The most items a work list of this problem can have."""
        tiles = self.padded_rows // self.row_tile
        cached = -(-self.page // self.page_block) * self.pages_per_row
        return self.batch * tiles * (tiles + cached)


def of(query: Any, new_key: Any, cached_key: Any, work: Any, *, canvas: bool = False) -> Problem:
    """The sizes of a call's arrays (or of their shapes and dtypes)."""
    batch, kv_heads, group, rows, head_dim = query.shape
    has_cache = cached_key is not None
    return Problem(
        batch=batch,
        kv_heads=kv_heads,
        group=group,
        rows=rows,
        head_dim=head_dim,
        dtype=jnp.dtype(new_key.dtype).name,
        page=cached_key.shape[4] if has_cache else 0,
        page_block=work.page_block,
        pages_per_row=work.table.shape[1],
        row_tile=work.row_tile,
        layers=cached_key.shape[0] if has_cache else 1,
        canvas=canvas,
    )
