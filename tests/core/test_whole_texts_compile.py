"""The kernel for whole texts and its gradient, compiled for TPUs that are not here."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxdecode.core import attention
from jaxdecode.core.masks import MaskProgram
from jaxdecode.dist import mesh as meshes
from tests.kernels.topology import devices, needs_libtpu

pytestmark = needs_libtpu

# KV heads, queries for each, width of a head, length of a text: SmolLM2, Gemma 3, odd widths.
SIZES = [
    ((3, 3, 64, 256), jnp.float32),
    ((1, 4, 256, 2048), jnp.bfloat16),
    ((2, 1, 80, 384), jnp.bfloat16),
]


@pytest.mark.parametrize(("sizes", "dtype"), SIZES)
@pytest.mark.parametrize("generation", ["v5e", "v5p"])
def test_it_compiles_with_its_gradient(generation, sizes, dtype):
    kv_heads, group, width, length = sizes
    mesh = meshes.make("data=4", devices(generation))
    backend = attention.for_training(_Plain(), mesh)
    assert backend.whole_texts

    def loss(query, key, value, weight, positions, segments):
        mask = MaskProgram(
            cached=jnp.zeros(4, jnp.int32),
            positions=positions,
            num_new=jnp.full(4, length, jnp.int32),
            segments=segments,
        )
        mixed = attention.attention(query, key, value, None, mask=mask, window=0, backend=backend)
        return (mixed * weight).astype(jnp.float32).sum()

    def leaf(*shape, dtype=dtype):
        where = NamedSharding(mesh, PartitionSpec("data"))
        return jax.ShapeDtypeStruct((4, *shape), dtype, sharding=where)

    query = leaf(kv_heads, group, length, width)
    keys, values = leaf(kv_heads, width, length), leaf(kv_heads, length, width)
    counts = leaf(length, dtype=jnp.int32)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    program = gradient.lower(query, keys, values, query, counts, counts).compile()
    # One kernel forward, one for the queries' gradient and one for that of keys and values.
    assert program.as_text().count('custom_call_target="tpu_custom_call"') == 3


class _Plain:
    layer_windows = ()
