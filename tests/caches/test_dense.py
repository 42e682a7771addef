"""The dense cache: what is written is there, however many rows there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.caches import dense
from tests import toys


@pytest.mark.parametrize("small_page", [0, 1 << 20])
@pytest.mark.parametrize("stacked", [True, False])
def test_many_rows_are_written_as_few_are(stacked, small_page, monkeypatch):
    rng, batch, num_new = np.random.default_rng(0), 5, 3
    state = dense.init(toys.config(), batch, 16, jnp.float32, stacked=stacked)

    def new(side, slots):
        cut = jax.tree.map(lambda x: jax.lax.slice_in_dim(x, 0, num_new, axis=slots), side)
        return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), cut)

    rows = new(state.key, -1), new(state.value, -2)
    start = jnp.asarray([0, 4, 13, 7, 1])
    few = dense.write(state, rows, start)
    monkeypatch.setattr(dense, "_MAX_SLICES", dict.fromkeys((4, 5), batch - 1))
    monkeypatch.setattr(dense, "_SMALL_PAGE", small_page)
    many = dense.write(state, rows, start)
    for ours, wanted in zip(jax.tree.leaves(many), jax.tree.leaves(few), strict=True):
        assert np.abs(wanted).max() > 0
        np.testing.assert_array_equal(ours, wanted)


@pytest.mark.parametrize("stacked", [True, False])
def test_rows_are_put_into_any_slots_and_dropped_past_the_last(stacked):
    rng, slots = np.random.default_rng(1), np.array([[9, 2, 16], [0, 1, 15]])
    state = dense.init(toys.config(), 2, 16, jnp.float32, stacked=stacked)

    def new(side, axis):
        cut = jax.tree.map(lambda x: jax.lax.slice_in_dim(x, 0, 3, axis=axis), side)
        return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), cut)

    rows = new(state.key, -1), new(state.value, -2)
    after = dense.put(state, rows, jnp.asarray(slots))
    for side, new_side, axis in [(after.key, rows[0], -1), (after.value, rows[1], -2)]:
        for page, row in zip(jax.tree.leaves(side), jax.tree.leaves(new_side), strict=True):
            page, row = np.moveaxis(page, axis, 0), np.moveaxis(row, axis, 0)
            wanted = np.zeros_like(page)
            batch = page.ndim - 4 + 1  # the axis of batch rows, behind that of slots
            for b in range(2):
                at = (slice(None),) * (batch - 1) + (b,)
                for i, slot in enumerate(slots[b]):
                    if slot < 16:
                        wanted[slot][at] = row[i][at]
            np.testing.assert_array_equal(page, wanted)
