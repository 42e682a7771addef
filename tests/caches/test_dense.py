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
