"""Static rules for canvases (who sees whom by index alone), cut into tiles for the planner.

A tile that nobody sees is not listed, a tile that all see needs no mask, and the few distinct
tiles in between are stored once as packed words.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from pallas_kernels.bits import WORD

# (query index, key index) -> bool, on NumPy integer arrays that broadcast.
Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]


def causal(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Every row sees itself and earlier rows."""
    return key <= query


def bidirectional(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Every row sees every row."""
    return np.ones(np.broadcast_shapes(query.shape, key.shape), bool)


def block_causal(block: int) -> Rule:
    """Every row sees its own block of `block` rows and the blocks before it."""
    return lambda query, key: key // block <= query // block


def two_copies(num_tokens: int, block: int, *, clean_first: bool = False) -> Rule:
    """The training mask of block diffusion over 2 n rows, a noisy and a clean copy of n tokens.

    A noisy row sees the noisy rows of its own block and the clean rows of earlier blocks; a clean
    row sees the clean rows of its own and earlier blocks. Noisy rows come first as in BD3-LM
    (arXiv:2503.09573), or last as in ACDiT's skip-causal mask (arXiv:2412.07720).
    """

    def rule(query: np.ndarray, key: np.ndarray) -> np.ndarray:
        clean_query, clean_key = ((x >= num_tokens) != clean_first for x in (query, key))
        query_block, key_block = (x % num_tokens // block for x in (query, key))
        within_noisy = ~clean_query & ~clean_key & (key_block == query_block)
        noisy_to_clean = ~clean_query & clean_key & (key_block < query_block)
        within_clean = clean_query & clean_key & (key_block <= query_block)
        return within_noisy | noisy_to_clean | within_clean

    return rule


@dataclasses.dataclass(frozen=True)
class Canvas:
    """A rule over a number of rows, as the non-empty tiles of every tile of queries.

    Attributes:
        rule: who sees whom.
        num_rows: rows of the canvas.
        row_tile: rows and columns of a tile, a multiple of 32.
        first: index of each query tile's first entry in the lists below, and their length.
        column: tile of keys; the one on the diagonal comes first in each list.
        mask: index into `words`, or -1 if all rows see all columns.
        words: distinct partial tiles, packed along queries.
    """

    rule: Rule
    num_rows: int
    row_tile: int
    first: np.ndarray
    column: np.ndarray
    mask: np.ndarray
    words: np.ndarray

    @property
    def num_tiles(self) -> int:
        """Tiles of queries."""
        return len(self.first) - 1

    def dense(self) -> np.ndarray:
        """The rule as a `[num_rows, num_rows]` mask."""
        rows = np.arange(self.num_rows)
        return _visible(self.rule, self.num_rows, rows, rows)


def canvas(rule: Rule, num_rows: int, *, row_tile: int = 256) -> Canvas:
    """Cuts a rule into tiles.

    Args:
        rule: who sees whom; every row also sees itself.
        num_rows: rows of the canvas; need not fill the last tile.
        row_tile: rows of a tile; smaller tiles skip more and load more often.

    Raises:
        ValueError: row_tile is not a positive multiple of 32.
    """
    if row_tile <= 0 or row_tile % WORD:
        raise ValueError(f"row_tile={row_tile} must be a positive multiple of {WORD}, e.g. 256.")
    first, column, mask, words = [0], [], [], {}
    num_tiles = -(-num_rows // row_tile)
    for i in range(num_tiles):
        for j in (i, *(j for j in range(num_tiles) if j != i)):
            sees = _visible(rule, num_rows, _rows(i, row_tile), _rows(j, row_tile))
            if sees.any():
                packed = _pack(sees)
                partial = -1 if sees.all() else words.setdefault(packed.tobytes(), len(words))
                column.append(j)
                mask.append(partial)
        first.append(len(column))
    tiles = [np.frombuffer(tile, np.uint32) for tile in words] or [_pack(np.eye(row_tile) > 0)]
    return Canvas(
        rule=rule,
        num_rows=num_rows,
        row_tile=row_tile,
        first=np.asarray(first, np.int32),
        column=np.asarray(column, np.int32),
        mask=np.asarray(mask, np.int32),
        words=np.stack([tile.reshape(row_tile // WORD, row_tile) for tile in tiles]),
    )


def _rows(tile: int, size: int) -> np.ndarray:
    return np.arange(tile * size, (tile + 1) * size)


def _visible(rule: Rule, num_rows: int, query: np.ndarray, key: np.ndarray) -> np.ndarray:
    query, key = query[:, None], key[None, :]
    inside = (query < num_rows) & (key < num_rows)
    return (rule(query, key) & inside) | (query == key)


def _pack(sees: np.ndarray) -> np.ndarray:
    rows = sees.reshape(-1, WORD, sees.shape[1]).astype(np.uint32)
    return (rows << np.arange(WORD, dtype=np.uint32)[:, None]).sum(1, dtype=np.uint32)
