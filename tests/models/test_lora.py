"""Low-rank adapters: closed gates change no bit, and open ones say what the merged model says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.models import decoder, layout, lora
from tests import toys

TOKENS = jnp.asarray([[3, 1, 4, 1, 5, 9]], jnp.int32)


def trained(params):
    """Adapters of rank 3 that change something."""
    adapters = lora.init(jax.random.key(0), params, 3)
    leaves, structure = jax.tree.flatten(adapters)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def forms(name):
    """The model, and its parameters as a list of layers or stacked."""
    lm = toys.model()
    plain = layout.without_copies(lm.params)
    if name == "stacked":
        plain = {**plain, "layers": decoder.stack(plain["layers"])}
    return lm, plain if name != "copies" else layout.with_copies(plain)


def states(lm, params):
    return lm.target.forward(params, TOKENS, toys.causal(6, 6), None).hidden


@pytest.mark.parametrize("form", ["list", "stacked", "copies"])
def test_a_closed_gate_changes_no_bit_and_an_open_one_only_its_rows(form):
    lm, params = forms(form)
    adapters = trained(params)
    plain = np.asarray(states(lm, params))
    shut = states(lm, lora.attach(params, adapters, jnp.zeros((1, 6))))
    np.testing.assert_array_equal(shut, plain)
    last = jnp.zeros((1, 6)).at[0, 5].set(1.0)
    half = np.asarray(states(lm, lora.attach(params, adapters, last)))
    np.testing.assert_array_equal(half[:, :5], plain[:, :5])
    assert np.abs(half[:, 5] - plain[:, 5]).max() > 0.01


def test_an_infinite_adapter_does_not_leak_through_a_closed_gate():
    lm, params = forms("list")
    adapters = jax.tree.map(lambda leaf: leaf + jnp.inf, lora.init(jax.random.key(0), params, 2))
    shut = states(lm, lora.attach(params, adapters, jnp.zeros((1, 6))))
    np.testing.assert_array_equal(shut, states(lm, params))


@pytest.mark.parametrize("form", ["list", "stacked", "copies"])
def test_attached_and_merged_agree(form):
    lm, params = forms(form)
    adapters = trained(params)
    merged = states(lm, lora.merge(params, adapters))
    assert np.abs(merged - states(lm, params)).max() > 0.01
    np.testing.assert_allclose(states(lm, lora.attach(params, adapters)), merged, atol=1e-5)
    gated = lora.attach(params, adapters, jnp.ones((1, 6)))
    np.testing.assert_allclose(states(lm, gated), merged, atol=1e-5)


def test_adapters_begin_as_nothing_and_may_be_few():
    lm, params = forms("list")
    adapters = lora.init(jax.random.key(0), params, 4, which=("qkv",))
    assert jax.tree.map(jnp.shape, adapters) == {
        "attn": {"qkv": {"a": (2, 32, 4), "b": (2, 4, 2, 4, 8)}}
    }
    np.testing.assert_array_equal(states(lm, lora.attach(params, adapters)), states(lm, params))
