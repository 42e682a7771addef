"""Random attention calls in NumPy, and their answer in float64."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Call:
    """Arrays of one call; cached slots nobody sees are NaN."""

    query: np.ndarray
    new_key: np.ndarray
    new_value: np.ndarray
    cached_key: np.ndarray
    cached_value: np.ndarray
    sees: np.ndarray
    lengths: np.ndarray
    table: np.ndarray
    layer: int


def random_tree(rng, num_nodes):
    """`[n, m]` is True iff node m is n or an ancestor of n."""
    sees = np.eye(num_nodes, dtype=bool)
    for node in range(1, num_nodes):
        sees[node] |= sees[rng.integers(max(0, node - 12), node)]
    return sees


def random_call(rng, sizes, *, sees=None, lengths=None, paged=False):
    """A call of these sizes; `lengths` are ragged, with an empty and a full row if two fit."""
    shape = (sizes.batch, sizes.kv_heads)
    slots = sizes.page * sizes.pages_per_row
    if lengths is None:
        lengths = rng.integers(0, slots + 1, sizes.batch)
        lengths[:2] = [0, slots][: sizes.batch]
        rng.shuffle(lengths)
    if sees is None:
        sees = np.stack([random_tree(rng, sizes.rows) for _ in range(sizes.batch)])
    num_pages = sizes.batch * sizes.pages_per_row
    table = np.arange(num_pages).reshape(sizes.batch, -1)
    if paged:
        num_pages += 3
        table = rng.permutation(num_pages)[: table.size].reshape(table.shape)
    pages = (sizes.layers, num_pages, sizes.kv_heads)
    key = np.full((*pages, sizes.head_dim, sizes.page), np.nan, np.float32)
    value = np.full((*pages, sizes.page, sizes.head_dim), np.nan, np.float32)
    for b, n in np.ndindex(table.shape):
        seen = int(np.clip(lengths[b] - n * sizes.page, 0, sizes.page))
        for part in (key[:, table[b, n], :, :, :seen], value[:, table[b, n], :, :seen]):
            part[...] = rng.standard_normal(part.shape)
    scale = sizes.head_dim**-0.5
    return Call(
        query=_normal(rng, *shape, sizes.group, sizes.rows, sizes.head_dim) * scale,
        new_key=_normal(rng, *shape, sizes.head_dim, sizes.rows),
        new_value=_normal(rng, *shape, sizes.rows, sizes.head_dim),
        cached_key=key,
        cached_value=value,
        sees=sees,
        lengths=lengths.astype(np.int32),
        table=table.astype(np.int32),
        layer=int(rng.integers(sizes.layers)),
    )


def _normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def expected(call):
    """Softmax attention in float64, one row and head at a time."""
    query = np.asarray(call.query, np.float64)
    out = np.empty_like(query)
    for b, h in np.ndindex(query.shape[:2]):
        pages = call.table[b]
        key = np.concatenate([call.cached_key[call.layer, p, h] for p in pages], 1)
        value = np.concatenate([call.cached_value[call.layer, p, h] for p in pages], 0)
        seen = call.lengths[b]
        key = np.concatenate([call.new_key[b, h], key[:, :seen]], 1).astype(np.float64)
        value = np.concatenate([call.new_value[b, h], value[:seen]], 0).astype(np.float64)
        sees = np.concatenate([call.sees[b], np.ones((len(call.sees[b]), seen), bool)], 1)
        scores = np.where(sees, query[b, h] @ key, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[b, h] = weights @ value / weights.sum(-1, keepdims=True)
    return out
