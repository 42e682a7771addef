"""Attention masks as programs: a rule plus per-row data, never a stored [T, S] array.

Query i of a forward pass sees a cached slot if the slot is below the row's `cached` count, and a
new row j if the rule allows it. A layer's window further limits both by distance in positions.
One function turns a program into the dense masks of the XLA path; kernels read the program itself.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from jaxdecode.core.types import Window, pytree, static

Rule = Literal["causal", "bidirectional", "block_causal", "tree", "noisy_and_clean"]


@pytree
class MaskProgram:
    """Who sees whom in one forward pass of T new rows.

    Attributes:
        cached: cache slots every new row may see: slots below this count.
        positions: absolute position of each new row; slot s of the cache has position s.
        num_new: new rows that exist; later ones are padding that nobody sees.
        ancestors: "tree" only; word [w, c] holds, as bits, which of rows 32w..32w+31 see row c
            (packed along the query axis, so that a kernel expands it without a lane gather).
        rule: how new rows see each other. "block_causal" sees its own and earlier blocks.
            "noisy_and_clean" is for training: the second half of the rows is a text, which is
            block-causal; the first half, at the same positions, is the text with noise, where a
            block sees itself and the earlier blocks of the second half.
        block: size of a block in positions; the two rules with blocks only.
        plan: the program in the form that an attention kernel reads; None where none runs.
        segments: which of several packed texts each new row belongs to; rows see their own text
            only. None where a row of the batch is one text. Kernels refuse it.
        replaced: cache slots, from the first to before the second, that nobody sees, since new
            rows stand for them. None: none. Kernels refuse it.
        scattered: nobody sees the cache slots of the new rows' positions, wherever they are, since
            the rows stand for them. Kernels refuse it.
        blocks: the block of each new row, ascending along its text, where blocks are not all
            `block` positions long; the two rules with blocks only. Kernels refuse it.
    """

    cached: Int[Array, "B"]
    positions: Int[Array, "B T"]
    num_new: Int[Array, "B"]
    ancestors: UInt32[Array, "B W T"] | None = None
    rule: Rule = static(default="causal")
    block: int = static(default=0)
    plan: Any = None
    segments: Int[Array, "B T"] | None = None
    replaced: Int[Array, "B 2"] | None = None
    scattered: bool = static(default=False)
    blocks: Int[Array, "B T"] | None = None


def dense(
    program: MaskProgram,
    *,
    num_slots: int,
    window: int | Int[Array, ""],
    first_slot: int | Int[Array, ""] = 0,
) -> tuple[Bool[Array, "B T S"], Bool[Array, "B T T"]]:
    """The program as dense masks over cache slots and over new rows.

    Args:
        program: the mask program.
        num_slots: S, slots of the cache; 0 gives an empty first mask.
        window: positions a query looks back, itself included; 0 means all.
        first_slot: the first of them.
    """
    query = program.positions[:, :, None]
    slot = (first_slot + jnp.arange(num_slots, dtype=jnp.int32))[None, None, :]
    over_cache = slot < program.cached[:, None, None]
    if program.replaced is not None:
        start, end = program.replaced[:, 0], program.replaced[:, 1]
        over_cache &= (slot < start[:, None, None]) | (slot >= end[:, None, None])
    if program.scattered:
        over_cache &= ~_stood_for(program, num_slots)[:, None, :]
    key = program.positions[:, None, :]
    over_new = _new_rule(program, query, key)
    if program.segments is not None:
        over_new &= program.segments[:, :, None] == program.segments[:, None, :]
    num_rows = program.positions.shape[1]
    over_new &= jnp.arange(num_rows)[None, None, :] < program.num_new[:, None, None]
    # A padding row sees itself, so that its softmax is finite; nobody reads the result.
    over_new |= jnp.eye(num_rows, dtype=bool)[None]
    if not (isinstance(window, int) and window == 0):
        over_cache &= query - slot < window
        over_new &= query - key < window
    return jnp.broadcast_to(over_cache, (*over_new.shape[:2], num_slots)), over_new


def _new_rule(
    program: MaskProgram, query: Int[Array, "B T 1"], key: Int[Array, "B 1 T"]
) -> Bool[Array, "B T T"]:
    if program.rule == "tree":
        assert program.ancestors is not None
        return unpack_ancestors(program.ancestors)
    if program.rule == "bidirectional":
        return jnp.ones(jnp.broadcast_shapes(query.shape, key.shape), bool)
    if program.rule in ("block_causal", "noisy_and_clean"):
        return _blocks_rule(program)
    return key <= query


def _stood_for(program: MaskProgram, num_slots: int) -> Bool[Array, "B S"]:
    """Cache slots that some new row is at."""

    def mark(positions, num_new):
        exists = jnp.arange(positions.shape[0]) < num_new
        slot = jnp.where(exists, positions, num_slots)
        return jnp.zeros(num_slots, bool).at[slot].set(True, mode="drop")

    return jax.vmap(mark)(program.positions, program.num_new)


def _blocks_rule(program: MaskProgram) -> Bool[Array, "B T T"]:
    blocks = program.positions // program.block if program.blocks is None else program.blocks
    query, key = blocks[:, :, None], blocks[:, None, :]
    if program.rule == "block_causal":
        return key <= query
    num_rows = blocks.shape[1]
    clean = jnp.arange(num_rows) >= num_rows // 2
    reads, read = clean[:, None], clean[None, :]
    within = (query == key) & (reads == read)
    return within | (read & (key < query))


def pack_ancestors(sees: Bool[Array, "B T T"]) -> UInt32[Array, "B W T"]:
    """Packs `sees[b, query, key]` 32 queries to a word."""
    batch, num_rows, _ = sees.shape
    num_words = -(-num_rows // 32)
    padded = jnp.pad(sees, ((0, 0), (0, num_words * 32 - num_rows), (0, 0)))
    bits = padded.reshape(batch, num_words, 32, num_rows).astype(jnp.uint32)
    return (bits << jnp.arange(32, dtype=jnp.uint32)[None, None, :, None]).sum(2, dtype=jnp.uint32)


def unpack_ancestors(words: UInt32[Array, "B W T"]) -> Bool[Array, "B T T"]:
    """The inverse of `pack_ancestors`."""
    batch, num_words, num_rows = words.shape
    bits = words[:, :, None, :] >> jnp.arange(32, dtype=jnp.uint32)[None, None, :, None]
    return (bits & 1).astype(bool).reshape(batch, num_words * 32, num_rows)[:, :num_rows]


def ancestors_of(parent: Int[Array, "N"]) -> Bool[Array, "N N"]:
    """`[n, m]` is True iff node m is n or an ancestor of n; parents precede their children."""
    num_nodes = parent.shape[0]
    eye = jnp.eye(num_nodes, dtype=bool)

    def add(sees: Bool[Array, "N N"], node: Int[Array, ""]) -> tuple[Bool[Array, "N N"], None]:
        inherited = jnp.where(parent[node] >= 0, sees[parent[node]], False)
        return sees.at[node].set(inherited | eye[node]), None

    return jax.lax.scan(add, jnp.zeros_like(eye), jnp.arange(num_nodes))[0]


def window_program(window: Window) -> MaskProgram:
    """Mask of a window: its rows see each other and the cached slots that none of them stands for.

    With blocks, a position sees its own block and earlier ones, in the cache as among the rows:
    then the cache below `cached` must hold no later block. Rows that are read by turns need slots,
    and see no cache that holds them.
    """
    num_rows = window.tokens.shape[1]
    if window.reading is not None:
        return _reading_program(window)
    if window.slots is not None:
        return MaskProgram(
            cached=window.cached,
            positions=window.slots,
            num_new=window.num,
            rule="bidirectional",
            scattered=True,
        )
    return MaskProgram(
        cached=window.cached,
        positions=window.first[:, None] + jnp.arange(num_rows, dtype=jnp.int32),
        num_new=window.num,
        rule="block_causal" if window.block else "bidirectional",
        block=window.block,
        replaced=jnp.stack([window.first, window.first + window.num], axis=1),
    )


def _reading_program(window: Window) -> MaskProgram:
    """Rows that see each other by turns; nothing is cached."""
    reading, slots = window.reading, window.slots
    assert reading is not None and slots is not None
    sees = reading.turn[:, None, :] <= reading.until[:, :, None]
    sees |= jnp.eye(slots.shape[1], dtype=bool)
    return MaskProgram(
        cached=window.cached,
        positions=slots,
        num_new=window.num,
        ancestors=pack_ancestors(sees),
        rule="tree",
    )


def tree_program(
    *,
    cached: Int[Array, "B"],
    parent: Int[Array, "B N"],
    depth: Int[Array, "B N"],
    valid: Bool[Array, "B N"],
) -> MaskProgram:
    """Mask of a proposal: every node sees the cache, its ancestors and itself."""
    num_nodes = parent.shape[1]
    positions = cached[:, None] + depth
    if num_nodes == 1:
        return MaskProgram(cached=cached, positions=positions, num_new=jnp.ones_like(cached))
    sees = jax.vmap(ancestors_of)(parent) & valid[:, None, :]
    return MaskProgram(
        cached=cached,
        positions=positions,
        num_new=jnp.full_like(cached, num_nodes),
        ancestors=pack_ancestors(sees),
        rule="tree",
    )
