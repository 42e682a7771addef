"""Copies of kernels change where products read, never what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import api
from jaxdecode.errors import InputError
from jaxdecode.models import decoder, layout
from tests import toys


def twins(dtype):
    plain = jax.tree.map(lambda leaf: leaf.astype(dtype), toys.model().params)
    return [api.from_params(toys.config(), p) for p in (plain, layout.with_copies(plain))]


def hidden(lm, params, num_rows):
    tokens = jnp.arange(3, 3 + num_rows, dtype=jnp.int32)[None]
    output = lm.target.forward(params, tokens, toys.causal(num_rows, num_rows), None)
    return np.asarray(output.hidden, np.float32)


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("bfloat16", 0.1)])
@pytest.mark.parametrize("num_rows", [1, 5])
def test_scores_are_the_same(dtype, atol, num_rows):
    ours, other = (hidden(lm, lm.params, num_rows) for lm in twins(dtype))
    np.testing.assert_allclose(ours, other, atol=atol)


def test_tokens_are_the_same():
    plain, fast = twins("float32")
    for prompts in ([[3, 1, 4]], [[3, 1, 4], [1, 5], [9]]):
        for method in ("ar", "prompt_lookup"):
            texts = [jd.generate(lm, prompts, method=method).tokens for lm in (plain, fast)]
            assert texts[0] == texts[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_copy_is_really_read(dtype):
    _, fast = twins(dtype)
    name, num_rows = {"float32": ("many_rows", 2), "bfloat16": ("one_row", 1)}[dtype]
    broken = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if path[-1].key == name else leaf, fast.params
    )
    ours, other = (hidden(fast, params, num_rows) for params in (fast.params, broken))
    assert not np.allclose(ours, other)


def test_checkpoints_hold_no_copies():
    plain, fast = twins("bfloat16")
    assert jax.tree.structure(layout.without_copies(fast.params)) == jax.tree.structure(
        dict(plain.params)
    )
    assert decoder.flatten(fast.params).keys() == decoder.flatten(plain.params).keys()


def test_the_option_is_checked():
    with pytest.raises(InputError, match="'auto', 'all' or 'none'"):
        jd.load("smollm2-135m", copies="some")
