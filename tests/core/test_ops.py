"""Products and their gradients, in 32 and 16 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.core import ops

FORMS = {
    "linear": (ops.linear, (24, 3, 8)),
    "transposed": (ops.linear_transposed, (40, 24)),
}


def gradients(form, x, kernel):
    weight = jnp.cos(jnp.arange(x.shape[0] * x.shape[1], dtype=jnp.float32)).reshape(x.shape[:2])

    def loss(x, kernel):
        out = form(x, kernel).reshape(*x.shape[:2], -1).astype(jnp.float32)
        return (jnp.sin(out) * weight[..., None]).sum()

    return jax.jit(jax.grad(loss, (0, 1)))(x, kernel)


def inputs(name, rows, dtype):
    form, shape = FORMS[name]
    keys = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(keys[0], (*rows, 24)), jax.random.normal(keys[1], shape) / 5
    return form, x.astype(dtype), kernel.astype(dtype)


@pytest.mark.parametrize("rows", [(1, 1), (2, 5)])
@pytest.mark.parametrize("name", FORMS)
def test_gradients_in_16_bits_are_those_in_32_but_for_rounding(name, rows):
    form, x, kernel = inputs(name, rows, jnp.bfloat16)
    found = gradients(form, x, kernel)
    right = gradients(form, x.astype(jnp.float32), kernel.astype(jnp.float32))
    for ours, exact in zip(found, right, strict=True):
        assert ours.dtype == jnp.bfloat16 and ours.shape == exact.shape
        error = np.abs(np.asarray(ours, np.float32) - exact).max() / np.abs(exact).max()
        assert 0 < error < 0.02


@pytest.mark.parametrize("name", FORMS)
def test_gradients_in_32_bits_are_those_of_einsum(name):
    form, x, kernel = inputs(name, (2, 5), jnp.float32)
    plain = {"linear": "bti,ihd->bthd", "transposed": "bti,oi->bto"}[name]
    right = gradients(lambda x, kernel: jnp.einsum(plain, x, kernel), x, kernel)
    for ours, exact in zip(gradients(form, x, kernel), right, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)
