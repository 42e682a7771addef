"""Work lists: the blocks a ragged batch really has to visit, one item per grid step of a kernel.

For every row of the batch and tile of queries the list names the tiles of new rows that it sees
(the one on the diagonal first, so that every query has a finite score from the start), then the
blocks of cached slots below the row's length. Blocks that nobody sees are not listed, and the
kernel's grid ends at `count`, so a batch costs the sum of its rows, not its longest row.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from pallas_kernels import bits
from pallas_kernels.rules import Canvas

# What an item is: a tile of new rows seen through packed words or by all, a block of the cache
# seen whole or below a limit.
NEW_WORDS, NEW_FULL, CACHE_FULL, CACHE_LIMIT = range(4)
FIRST, LAST = 1, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WorkList:
    """Items in the order they are worked off; fields past `count` are padding.

    An item that does not use a block repeats the index of the item before it: a block whose index
    does not change is not fetched again.

    Attributes:
        row: row of the batch.
        query_tile: tile of queries; 0 where one tile holds all rows.
        new_tile: tile of new keys and values.
        mask_tile: tile of packed words: the batch row for trees, a distinct tile for canvases.
        page: physical page of the cache.
        block: block of columns within the page.
        kind: NEW_WORDS, NEW_FULL, CACHE_FULL or CACHE_LIMIT.
        limit: visible columns of a CACHE_LIMIT block.
        edge: FIRST and LAST bits: the item begins or ends its tile of queries.
        count: number of items.
        lengths: cached slots that every new row sees.
        table: physical pages of each row, in order.
        row_tile: rows of a tile of queries.
        page_block: slots of a block of the cache.
    """

    row: Int[Array, "N"]
    query_tile: Int[Array, "N"]
    new_tile: Int[Array, "N"]
    mask_tile: Int[Array, "N"]
    page: Int[Array, "N"]
    block: Int[Array, "N"]
    kind: Int[Array, "N"]
    limit: Int[Array, "N"]
    edge: Int[Array, "N"]
    count: Int[Array, ""]
    lengths: Int[Array, "B"]
    table: Int[Array, "B P"]
    row_tile: int = dataclasses.field(metadata={"static": True})
    page_block: int = dataclasses.field(metadata={"static": True})


def plan(
    lengths: Int[Array, "B"],
    *,
    num_rows: int,
    page: int,
    page_block: int,
    table: Int[Array, "B P"] | None = None,
    canvas: Canvas | None = None,
) -> WorkList:
    """Lists the work of one attention call; jit-able, and the same list serves all layers.

    Args:
        lengths: cached slots that every new row sees, at most what the row's pages hold.
        num_rows: T, new rows; padded to a multiple of 32 as the kernels do.
        page: slots of a page; of the whole row in a dense cache; 0 without a cache.
        page_block: slots of a block, a multiple of 128 unless one block is the whole page.
        table: physical pages of each row; None for a dense cache, where page b is row b.
        canvas: rule of the new rows; None for trees, whose packed words are data.

    Raises:
        ValueError: the block does not fit the page, or the canvas has other rows.
    """
    _check(num_rows, page, page_block, table, canvas)
    batch = lengths.shape[0]
    if table is None:
        table = jnp.arange(batch, dtype=jnp.int32)[:, None]
    first, column, mask = _new_tiles(canvas)
    num_query_tiles = len(first) - 1
    per_page = -(-page // page_block) if page else 0
    most_pages = per_page * table.shape[1]

    lengths = jnp.minimum(lengths.astype(jnp.int32), page * table.shape[1])
    num_blocks = -(-lengths // page_block)
    sizes = (np.diff(first)[None, :] + num_blocks[:, None]).reshape(-1)
    ends = jnp.cumsum(sizes)
    item = jnp.arange(batch * (len(column) + num_query_tiles * most_pages), dtype=jnp.int32)
    group = jnp.minimum(jnp.searchsorted(ends, item, side="right"), len(sizes) - 1)
    group = group.astype(jnp.int32)
    offset = item - (ends - sizes)[group]
    row, query_tile = group // num_query_tiles, group % num_query_tiles

    num_new = jnp.asarray(np.diff(first))[query_tile]
    is_new = offset < num_new
    new_index = jnp.asarray(first)[query_tile] + jnp.minimum(offset, num_new - 1)
    new_mask = jnp.asarray(mask)[new_index]
    block = jnp.where(is_new, 0, offset - num_new)
    limit = jnp.clip(lengths[row] - block * page_block, 0, page_block)
    of_page = jnp.where(limit == page_block, CACHE_FULL, CACHE_LIMIT)
    of_new = jnp.where(new_mask < 0, NEW_FULL, NEW_WORDS)
    edge = jnp.where(offset == 0, FIRST, 0) + jnp.where(offset == sizes[group] - 1, LAST, 0)
    per_page = max(per_page, 1)
    has_words = is_new & (new_mask >= 0)
    return WorkList(
        row=row,
        query_tile=query_tile,
        new_tile=jnp.asarray(column)[new_index],
        mask_tile=_carry(row if canvas is None else new_mask, has_words),
        page=_carry(table[row, jnp.minimum(block // per_page, table.shape[1] - 1)], ~is_new),
        block=_carry(block % per_page, ~is_new),
        kind=jnp.where(is_new, of_new, of_page),
        limit=limit,
        edge=edge,
        count=ends[-1],
        lengths=lengths,
        table=table,
        row_tile=canvas.row_tile if canvas else bits.padded(num_rows),
        page_block=page_block,
    )


def _new_tiles(canvas: Canvas | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if canvas is not None:
        return canvas.first, canvas.column, canvas.mask
    return np.array([0, 1], np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32)


def _carry(value: Int[Array, "N"], used: Array) -> Int[Array, "N"]:
    """The value of the latest item that uses it; 0 before the first one."""
    latest = jax.lax.cummax(jnp.where(used, jnp.arange(len(value)), -1))
    return jnp.where(latest < 0, 0, value[jnp.maximum(latest, 0)]).astype(jnp.int32)


def _check(num_rows, page, page_block, table, canvas) -> None:
    if page_block <= 0 or (page_block % 128 and page_block != page):
        raise ValueError(
            f"page_block={page_block} must be a multiple of 128, or the whole page ({page} slots)."
        )
    if table is not None and table.shape[1] > 1 and page % page_block:
        raise ValueError(
            f"page_block={page_block} must divide a page of {page} slots; "
            "use a smaller block or longer pages."
        )
    if canvas is not None and canvas.num_rows != num_rows:
        raise ValueError(f"num_rows={num_rows}, but the canvas has {canvas.num_rows} rows.")
