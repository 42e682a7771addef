"""Who sees whom among the new rows, 32 queries to a word.

Word [w, c] holds, as bits, which of rows 32w..32w+31 see row c. Packing runs along the query axis,
so that a kernel expands a tile by repeating words over sublanes and shifting, without a gather.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt32

WORD = 32


def padded(num_rows: int) -> int:
    """Rows after padding to whole words."""
    return -(-num_rows // WORD) * WORD


def pack(sees: Bool[Array, "B T C"]) -> UInt32[Array, "B W C"]:
    """Packs `sees[b, query, key]`; the last word is filled with zeros."""
    batch, num_rows, num_columns = sees.shape
    fill = padded(num_rows) - num_rows
    rows = jnp.pad(sees, ((0, 0), (0, fill), (0, 0))).reshape(batch, -1, WORD, num_columns)
    shifts = jnp.arange(WORD, dtype=jnp.uint32)[:, None]
    return (rows.astype(jnp.uint32) << shifts).sum(2, dtype=jnp.uint32)


def unpack(words: UInt32[Array, "B W C"], num_rows: int) -> Bool[Array, "B T C"]:
    """The first `num_rows` queries of packed words."""
    batch, num_words, num_columns = words.shape
    shifts = jnp.arange(WORD, dtype=jnp.uint32)[:, None]
    rows = (words.astype(jnp.uint32)[:, :, None] >> shifts) & 1
    return rows.astype(bool).reshape(batch, num_words * WORD, num_columns)[:, :num_rows]


def with_diagonal(words: UInt32[Array, "B W T"]) -> UInt32[Array, "B P R"]:
    """Words of 32 W rows and as many columns, in which every row sees itself.

    Padding rows then have a finite softmax, and no kernel needs a guard for rows that see nothing.
    """
    num_rows = words.shape[1] * WORD
    square = jnp.pad(words.astype(jnp.uint32), ((0, 0), (0, 0), (0, num_rows - words.shape[2])))
    return square | pack(jnp.eye(num_rows, dtype=bool)[None])
