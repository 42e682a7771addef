"""Few bits against plain NumPy, rotations that change nothing, and products that read otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.core.masks import MaskProgram
from jaxdecode.errors import UnsupportedError
from jaxdecode.models import decoder, observe, rounding
from tests import toys


def test_weights_take_even_levels_of_their_group_and_keep_zeros():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(8, 3)).astype(np.float32)
    kernel[2] = 0.0
    found = np.asarray(rounding.round_weights(jnp.asarray(kernel), 4, 4))
    assert (found[2] == 0).all()
    for part, whole in zip(np.split(found, 2), np.split(kernel, 2), strict=True):
        step = (whole.max(0).clip(0) - whole.min(0).clip(None, 0)) / 15
        levels = part / step
        np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
        assert np.ptp(levels, axis=0).max() <= 15 + 1e-4
        # Where 0 is a level the ends may lie half a step outside of the others.
        assert (abs(part - whole) <= step * 1.01).all() and (part != whole).any()
    fine = rounding.round_weights(jnp.asarray(kernel), 8, 4)
    assert abs(fine - kernel).max() < abs(found - kernel).max() / 8


def test_tokens_have_scales_of_their_own():
    x = jnp.asarray([[1.0, -7.0, 3.4], [0.01, 0.07, -0.034], [0.0, 0.0, 0.0]])
    found = rounding.round_tokens(x, rounding.levels(4))
    np.testing.assert_allclose(found, [[1, -7, 3], [0.01, 0.07, -0.03], [0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("width", [8, 48, 64])
def test_a_rotation_is_one_and_spreads_what_is_large(width):
    turn = rounding.rotation(width)
    np.testing.assert_allclose(turn @ turn.T, np.eye(len(turn)), atol=1e-6)
    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=(16, width)), rng.normal(size=(width, 5))
    x[:, 3] *= 100
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    turned = rounding.rotate(x, turn)
    with jax.default_matmul_precision("highest"):
        product = turned @ rounding.rotate(kernel.T, turn).T
        np.testing.assert_allclose(product, x @ kernel, atol=1e-3 * float(abs(x @ kernel).max()))
    kurtosis = [float((y**4).mean() / (y**2).mean() ** 2) for y in (x, turned)]
    assert kurtosis[1] < kurtosis[0] / 2 and abs(turned).max() < abs(x).max() / 2


def test_a_width_without_powers_of_two_is_refused():
    with pytest.raises(UnsupportedError, match="12 inputs cannot be rotated"):
        rounding.rotation(12)


def test_products_read_what_stands_beside_their_kernels():
    """Against the same change made by hand to what a pass over the model shows of it."""
    built = toys.config()
    params = toys.params(built)
    target = decoder.make_target(built)
    tokens = jnp.asarray([[3, 1, 4, 1, 5]])
    mask = MaskProgram(
        cached=jnp.zeros(1, jnp.int32),
        positions=jnp.arange(5, dtype=jnp.int32)[None],
        num_new=jnp.full(1, 5, jnp.int32),
    )
    seen = observe.product_inputs(target, params, tokens, mask)
    assert {name: len(rows) for name, rows in seen.items()} == dict.fromkeys(
        ("attn.qkv", "attn.o", "mlp.gate_up", "mlp.down"), 2
    )
    assert seen["mlp.down"][1].shape == (1, 5, built.intermediate_size)
    scale = jnp.linspace(0.5, 2.0, built.intermediate_size)
    layers = [dict(layer) for layer in params["layers"]]
    down = layers[1]["mlp"]["down"]
    halved = {"kernel": down["kernel"] / scale, rounding.NAME: {"scale": scale}}
    layers[1]["mlp"] = layers[1]["mlp"] | {"down": halved}
    plain = target.forward(params, tokens, mask, None).hidden
    same = target.forward({**params, "layers": layers}, tokens, mask, None).hidden
    np.testing.assert_allclose(same, plain, atol=1e-5)
    stacked = {**params, "layers": decoder.stack(params["layers"])}
    scanned = observe.product_inputs(target, stacked, tokens, mask)
    np.testing.assert_allclose(scanned["mlp.down"][1], seen["mlp.down"][1], atol=1e-5)
    rough = halved | {rounding.NAME: {"scale": scale, "levels": jnp.float32(1)}}
    layers[1]["mlp"] = layers[1]["mlp"] | {"down": rough}
    other = target.forward({**params, "layers": layers}, tokens, mask, None).hidden
    assert abs(other - plain).max() > 1e-3
