"""The kernel for whole texts against plain attention, packed texts and gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.core import attention, whole_texts
from jaxdecode.core.masks import MaskProgram
from jaxdecode.dist import mesh as meshes

KERNEL = attention.Backend(interpret=True, whole_texts=True)


def case(batch=2, kv_heads=2, group=2, length=256, width=64):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [
        (batch, kv_heads, group, length, width),
        (batch, kv_heads, width, length),
        (batch, kv_heads, length, width),
        (batch, kv_heads, group, length, width),
    ]
    query, key, value, weight = (
        jax.random.normal(*each) for each in zip(keys, shapes, strict=True)
    )
    return query * width**-0.5, key, value, weight


def program(segments):
    segments = jnp.asarray(segments, jnp.int32)
    first = jnp.argmax(segments[:, :, None] == segments[:, None, :], axis=-1)
    batch, length = segments.shape
    return MaskProgram(
        cached=jnp.zeros(batch, jnp.int32),
        positions=jnp.arange(length, dtype=jnp.int32) - first.astype(jnp.int32),
        num_new=jnp.full(batch, length, jnp.int32),
        segments=segments,
    )


def packed(length):
    """A row of two texts and padding, and a row that is one text."""
    two = np.repeat([1, 2, 0], [length // 3, length // 2, length - length // 3 - length // 2])
    return [two.tolist(), [1] * length]


@functools.partial(jax.jit, static_argnames="backend")
def measured(query, key, value, weight, mask, *, backend):
    def loss(*given):
        mixed = attention.attention(*given, None, mask=mask, window=0, backend=backend)
        return (mixed * weight).sum(), mixed

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(query, key, value)


def compare(backend, mask, given):
    ours, theirs = (measured(*given, mask, backend=each) for each in (backend, attention.XLA))
    for a, b in zip(jax.tree.leaves(ours[0][1:]), jax.tree.leaves(theirs[0][1:]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_it_is_plain_attention_and_so_is_its_gradient():
    compare(KERNEL, program(packed(256)), case())


def test_a_mesh_changes_nothing():
    """Of several devices `training/test_compiled.py` compiles it."""
    mesh = meshes.make("data=1,model=1", jax.devices()[:1])
    backend = attention.Backend(mesh=mesh, interpret=True, whole_texts=True)
    compare(backend, program(packed(128)), case(length=128))


def test_it_differs_where_texts_are_not_told_apart():
    """The twin: what the comparison would say of a kernel without segments."""
    query, key, value, _ = case()
    told, untold = (
        whole_texts.attention(query, key, value, segments, interpret=True)
        for segments in (jnp.asarray(packed(256)), None)
    )
    assert np.abs(told[0] - untold[0]).max() > 0.1
    np.testing.assert_array_equal(told[1], untold[1])


@pytest.mark.parametrize(("length", "tile"), [(2048, 1024), (1536, 512), (384, 128), (200, None)])
def test_tiles_divide_the_text(length, tile):
    assert whole_texts.tile_of(length) == tile


def test_what_it_cannot_do_is_plain():
    """Other lengths than its own, and other rules."""
    given = case(length=100)
    compare(KERNEL, program(packed(100)), given)
    assert not attention._is_whole(program(packed(100)), None, 100)
    blocks = MaskProgram(
        cached=jnp.zeros(2, jnp.int32),
        positions=jnp.zeros((2, 128), jnp.int32),
        num_new=jnp.full(2, 128, jnp.int32),
        rule="bidirectional",
    )
    assert not attention._is_whole(blocks, None, 128)
