"""Attention of rows that go on from each place: pieces of it equal one softmax over all scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.core import ops
from jaxdecode.models import extra


def whole(key, value, query, hidden, later):
    """The same law, every score at once."""
    wide = jnp.einsum("btkgd,bskd->btkgs", query, key)
    scores = [jnp.where(hidden[:, :, None, None], -jnp.inf, wide)]
    scores += [jnp.einsum("btkgd,btkd->btkg", query, keys)[..., None] for keys, _ in later]
    law = jax.nn.softmax(jnp.concatenate(scores, axis=-1))
    mixed = jnp.einsum("btkgs,bskd->btkgd", law[..., : key.shape[1]], value)
    for j, (_, values) in enumerate(later, start=key.shape[1]):
        mixed += law[..., j, None] * values[:, :, :, None]
    return mixed


def pieces(key, value, query, hidden, later):
    attend = functools.partial(extra._attend_down, key, value)
    return ops.over_places(attend, 4, query, hidden, later)


@pytest.mark.parametrize("depth", [0, 2])
def test_pieces_equal_the_whole_and_so_do_their_gradients(depth):
    noise = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(noise.normal(size=shape), jnp.float32)

    # The last piece has two places and two of padding.
    batch, width, heads, group, depth_of_head = 2, 10, 2, 3, 8
    key, value = (normal(batch, width, heads, depth_of_head) for _ in range(2))
    query, weight = (normal(batch, width, heads, group, depth_of_head) for _ in range(2))
    later = [tuple(normal(*key.shape) for _ in range(2)) for _ in range(depth)]
    place, text = jnp.arange(width), jnp.arange(width) >= 6
    sees = (place[:, None] >= place) & (text[:, None] == text)
    hidden = jnp.broadcast_to(~sees, (batch, width, width))

    @functools.partial(jax.jit, static_argnames="law")
    def measured(key, value, query, later, *, law):
        def loss(*given):
            return (law(*given[:3], hidden, given[3]) * weight).sum()

        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(key, value, query, later)

    found, wanted = (measured(key, value, query, later, law=law) for law in (pieces, whole))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
