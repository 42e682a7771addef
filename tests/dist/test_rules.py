"""Where arrays lie on a mesh, and heads that do not divide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from jaxdecode.core.masks import MaskProgram
from jaxdecode.dist import rules
from jaxdecode.errors import InputError
from jaxdecode.models import decoder, kv_heads
from jaxdecode.models.config import param_shapes
from tests import toys

MESH = AbstractMesh((2, 4), ("data", "model"))


def test_every_kernel_of_a_layer_is_split_and_every_norm_whole():
    config = toys.gemma_like(num_kv_heads=4, vocab_size=64, qkv_bias=True, mlp_bias=True)
    for name, shape in param_shapes(config).items():
        spec = rules.param(name, shape, MESH).spec
        whole = "norm" in name or name.endswith(("o.bias", "down.bias"))
        assert ("model" in spec) != whole, name


def test_stacked_parameters_have_an_axis_in_front():
    shape = (3, *param_shapes(toys.config(num_kv_heads=4))["layers.0.attn.qkv.kernel"])
    assert rules.param("layers.attn.qkv.kernel", shape, MESH).spec == PartitionSpec(
        None, None, "model", None, None
    )


def test_a_vocabulary_that_does_not_divide_lies_whole_and_heads_are_refused():
    assert rules.param("embed.embedding", (61, 8), MESH).spec == PartitionSpec(None, None)
    with pytest.raises(InputError, match=r"attn.qkv.kernel.*kv_heads=2.*model=4"):
        rules.param("layers.0.attn.qkv.kernel", (32, 2, 4, 8), MESH)
    with pytest.raises(InputError, match=r"the cache.*rows=3.*data=2"):
        rules.cache(jax.ShapeDtypeStruct((3, 4, 8, 128), jnp.float32), MESH)


@pytest.mark.parametrize(
    ("num_kv_heads", "group", "size", "copies"),
    [(8, 4, 8, 1), (8, 4, 16, 2), (4, 2, 8, 2), (3, 3, 9, 3)],
)
def test_kv_heads_are_repeated_as_often_as_needed(num_kv_heads, group, size, copies):
    assert rules.kv_copies(num_kv_heads, group, size) == copies


def test_heads_that_cannot_be_split_are_refused_with_what_fits():
    with pytest.raises(InputError, match=r"3 KV heads with 3 .* model=2; .* 1, 3, 9\."):
        rules.kv_copies(3, 3, 2)


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True, "qk_norm": True}])
def test_a_model_with_repeated_heads_is_the_same_model(changes):
    config = toys.config(num_heads=8, num_kv_heads=2, **changes)
    params = toys.params(config)
    wide = kv_heads.repeat_config(config, 4)
    flat = {n: kv_heads.repeat_array(n, x, 4) for n, x in decoder.flatten(params).items()}
    assert {n: x.shape for n, x in flat.items()} == param_shapes(wide)
    tokens = jnp.asarray([[5, 3, 1, 9]])
    mask = MaskProgram(
        cached=jnp.zeros(1, jnp.int32),
        positions=jnp.arange(4, dtype=jnp.int32)[None],
        num_new=jnp.full(1, 4, jnp.int32),
    )
    out = [
        decoder.make_target(c).forward(p, tokens, mask, None).hidden
        for c, p in ((config, params), (wide, decoder.nest(wide, flat)))
    ]
    np.testing.assert_allclose(*out, atol=1e-5)
