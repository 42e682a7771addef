"""Mask programs against the rules written out with Python loops."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdecode.core import masks


def ancestors_or_self(parent, node):
    while node >= 0:
        yield node
        node = parent[node]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_tree_mask_is_ancestors_or_self(data):
    size = data.draw(st.sampled_from([1, 5, 33, 40]))
    parent = [-1] + [data.draw(st.integers(0, i - 1)) for i in range(1, size)]
    depth = [len(list(ancestors_or_self(parent, i))) - 1 for i in range(size)]
    valid = [True] + [data.draw(st.booleans()) for _ in range(size - 1)]
    program = masks.tree_program(
        cached=jnp.array([3]),
        parent=jnp.array([parent]),
        depth=jnp.array([depth]),
        valid=jnp.array([valid]),
    )
    over_cache, over_new = masks.dense(program, num_slots=6, window=0)
    assert np.array_equal(over_cache[0], np.tile(np.arange(6) < 3, (size, 1)))
    for query in range(size):
        for key in range(size):
            visible = key in ancestors_or_self(parent, query) and valid[key]
            assert over_new[0, query, key] == (visible or query == key)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_packed_ancestors_unpack_to_what_was_packed(size, seed):
    sees = np.random.default_rng(seed).random((2, size, size)) < 0.5
    words = masks.pack_ancestors(jnp.asarray(sees))
    assert words.shape == (2, -(-size // 32), size)
    assert np.array_equal(masks.unpack_ancestors(words), sees)


@pytest.mark.parametrize("rule", ["causal", "bidirectional", "block_causal"])
@pytest.mark.parametrize("window", [0, 3])
def test_rules(rule, window):
    cached, size, exist = 4, 6, 5
    positions = np.arange(cached, cached + size)
    program = masks.MaskProgram(
        cached=jnp.array([cached]),
        positions=jnp.asarray(positions)[None],
        num_new=jnp.array([exist]),
        rule=rule,
        block=4,
    )
    over_cache, over_new = masks.dense(program, num_slots=8, window=window)
    allowed = {
        "causal": lambda q, k: k <= q,
        "bidirectional": lambda q, k: True,
        "block_causal": lambda q, k: k // 4 <= q // 4,
    }[rule]
    for i, q in enumerate(positions):
        for slot in range(8):
            expected = slot < cached and (not window or q - slot < window)
            assert over_cache[0, i, slot] == expected
        for j, k in enumerate(positions):
            inside = not window or q - k < window
            assert over_new[0, i, j] == ((allowed(q, k) and j < exist or i == j) and inside)


def test_nobody_sees_the_cached_slots_that_scattered_rows_stand_for():
    program = masks.MaskProgram(
        cached=jnp.array([6, 0]),
        positions=jnp.array([[1, 4, 8], [0, 2, 8]]),
        num_new=jnp.array([2, 2]),
        rule="bidirectional",
        scattered=True,
    )
    over_cache, over_new = masks.dense(program, num_slots=8, window=0)
    assert np.flatnonzero(over_cache[0, 0]).tolist() == [0, 2, 3, 5]
    assert not over_cache[1].any()
    assert over_new[0, :2].tolist() == [[True, True, False]] * 2
