"""The work list names every block that is seen, once, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import bits, rules, worklist
from pallas_kernels.tree_attention import blocks

RULES = {
    "causal": rules.causal,
    "bidirectional": rules.bidirectional,
    "block_causal": rules.block_causal(24),
    "two_copies": rules.two_copies(100, 25),
    "clean_first": rules.two_copies(100, 25, clean_first=True),
}


def items(work):
    """The items before `count`, as dicts."""
    names = ["row", "query_tile", "new_tile", "mask_tile", "page", "block", "kind", "limit", "edge"]
    columns = {name: np.asarray(getattr(work, name)) for name in names}
    return [{n: int(c[i]) for n, c in columns.items()} for i in range(int(work.count))]


def painted(work, *, batch, tiles, words=None, slots, page):
    """Who sees what according to the list: new rows and cached slots."""
    size, per_page = work.row_tile, -(-page // work.page_block)
    new = np.zeros((batch, tiles * size, tiles * size), int)
    cache = np.zeros((batch, tiles * size, slots), int)
    inverse = {int(p): (b, n) for (b, n), p in np.ndenumerate(np.asarray(work.table))}
    for it in items(work):
        rows = slice(it["query_tile"] * size, (it["query_tile"] + 1) * size)
        if it["kind"] in (worklist.NEW_FULL, worklist.NEW_WORDS):
            tile = 1
            if it["kind"] == worklist.NEW_WORDS:
                tile = np.asarray(bits.unpack(words[it["mask_tile"]][None], size))[0]
            new[it["row"], rows, it["new_tile"] * size : (it["new_tile"] + 1) * size] += tile
        else:
            b, n = inverse[it["page"]]
            assert b == it["row"] and it["block"] < per_page
            start = n * page + it["block"] * work.page_block
            assert (it["kind"] == worklist.CACHE_FULL) == (it["limit"] == work.page_block)
            cache[b, rows, start : start + it["limit"]] += 1
    return new, cache


@pytest.mark.parametrize(("page", "block", "pages"), [(1000, 256, 1), (256, 128, 4), (128, 128, 3)])
def test_tree_items_cover_what_is_seen_once(page, block, pages):
    rng = np.random.default_rng(page)
    batch, rows, slots = 5, 40, page * pages
    lengths = np.array([0, slots, 1, block, slots // 2 + 3], np.int32)
    table = None
    if pages > 1:
        table = jnp.asarray(rng.permutation(batch * pages + 2)[: batch * pages].reshape(batch, -1))
    plan = jax.jit(
        lambda n: worklist.plan(n, num_rows=rows, page=page, page_block=block, table=table)
    )
    work = plan(jnp.asarray(lengths))
    words = bits.with_diagonal(bits.pack(jnp.tril(jnp.ones((batch, rows, rows), bool))))
    new, cache = painted(work, batch=batch, tiles=1, words=words, slots=slots, page=page)
    sees = np.broadcast_to(np.eye(64, dtype=int), (batch, 64, 64)).copy()
    sees[:, :rows, :rows] = np.tril(np.ones((rows, rows), int))
    np.testing.assert_array_equal(new, sees)
    inside = np.arange(slots)[None, None] < lengths[:, None, None]
    np.testing.assert_array_equal(cache, np.broadcast_to(inside, cache.shape))
    assert int(work.count) == batch + sum(-(-n // block) for n in lengths)


@pytest.mark.parametrize("name", RULES)
def test_canvas_items_cover_the_rule(name):
    rows, batch = 200, 2
    canvas = rules.canvas(RULES[name], rows, row_tile=32)
    lengths = jnp.array([0, 130])
    work = worklist.plan(lengths, num_rows=rows, page=256, page_block=128, canvas=canvas)
    new, cache = painted(
        work, batch=batch, tiles=canvas.num_tiles, words=canvas.words, slots=256, page=256
    )
    index = np.arange(rows)
    dense = RULES[name](index[:, None], index[None]) | np.eye(rows, dtype=bool)
    np.testing.assert_array_equal(new[:, :rows, :rows], np.stack([dense] * batch))
    np.testing.assert_array_equal(canvas.dense(), dense)
    np.testing.assert_array_equal(cache[1].any(0), np.arange(256) < 130)
    assert not cache[0].any()


def test_hidden_tiles_are_not_listed():
    canvas = rules.canvas(rules.block_causal(32), 256, row_tile=64)
    assert len(canvas.column) == 4 + 3 + 2 + 1
    assert len(canvas.words) == 1


@pytest.mark.parametrize("name", ["causal", "two_copies"])
def test_every_query_tile_begins_with_its_diagonal_and_ends_once(name):
    canvas = rules.canvas(RULES[name], 200, row_tile=32)
    lengths = jnp.array([300, 0, 5])
    work = worklist.plan(lengths, num_rows=200, page=384, page_block=128, canvas=canvas)
    listed = items(work)
    for before, it in zip([None, *listed], listed, strict=False):
        begins = before is None or (before["row"], before["query_tile"]) != (
            it["row"],
            it["query_tile"],
        )
        assert begins == bool(it["edge"] & worklist.FIRST)
        if begins:
            assert it["new_tile"] == it["query_tile"] and it["kind"] <= worklist.NEW_FULL
            assert before is None or before["edge"] & worklist.LAST
    assert listed[-1]["edge"] & worklist.LAST


def test_lengths_past_the_cache_are_cut():
    work = worklist.plan(jnp.array([700]), num_rows=3, page=512, page_block=512)
    assert int(work.lengths[0]) == 512 and int(work.count) == 2


def test_no_cache_has_no_items():
    work = worklist.plan(jnp.array([7, 0]), num_rows=3, page=0, page_block=128)
    assert int(work.count) == 2 and not np.asarray(work.lengths).any()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (dict(num_rows=4, page=512, page_block=100), "multiple of 128"),
        (dict(num_rows=4, page=512, page_block=0), "multiple of 128"),
        (dict(num_rows=4, page=384, page_block=256, table=jnp.zeros((1, 2), int)), "must divide"),
        (
            dict(num_rows=4, page=0, page_block=128, canvas=rules.canvas(rules.causal, 8)),
            "has 8 rows",
        ),
    ],
)
def test_bad_plans_say_what_to_do(args, message):
    with pytest.raises(ValueError, match=message):
        worklist.plan(jnp.array([3]), **args)


def test_bad_tiles_say_what_to_do():
    with pytest.raises(ValueError, match="row_tile=48"):
        rules.canvas(rules.causal, 100, row_tile=48)


def test_words_are_those_of_the_mask_programs():
    from jaxdecode.core import masks

    sees = jax.random.bernoulli(jax.random.key(0), 0.3, (3, 45, 45))
    packed = bits.pack(sees)
    np.testing.assert_array_equal(packed, masks.pack_ancestors(sees))
    np.testing.assert_array_equal(bits.unpack(packed, 45), sees)
    square = bits.unpack(bits.with_diagonal(packed), 64)
    np.testing.assert_array_equal(square[:, :45, :45], sees | np.eye(45, dtype=bool))
    np.testing.assert_array_equal(
        square[:, 45:], np.broadcast_to(np.eye(64) > 0, (3, 64, 64))[:, 45:]
    )


@pytest.mark.parametrize(
    ("page", "kv_heads", "block"),
    [(2048, 8, 256), (2048, 1, 2048), (2048, 64, 128), (640, 8, 128), (96, 8, 96), (300, 8, 384)],
)
def test_blocks_move_about_a_step(page, kv_heads, block):
    got = blocks.page_block(page, kv_heads, 128, 2)
    assert got == block
    worklist.plan(jnp.array([page]), num_rows=1, page=page, page_block=got)
