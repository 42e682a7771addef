"""Forms of the parameters, masks as arguments, taps, dtypes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import api
from jaxdecode.core import masks
from jaxdecode.errors import InputError
from jaxdecode.models import decoder, rope
from jaxdecode.models.config import Rope, param_shapes
from tests import toys


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_stacked_layers_decode_like_a_list_of_layers(name):
    lm = toys.model(name)
    stacked = {**lm.params, "layers": decoder.stack(lm.params["layers"])}
    other = api.from_params(lm.config, stacked)
    prompts = [[1, 2, 3], list(range(40))]
    for law in ({}, {"temperature": 1.0}):
        a = jd.generate(lm, prompts, max_new_tokens=12, **law)
        b = jd.generate(other, prompts, max_new_tokens=12, **law)
        assert a.tokens == b.tokens
    taps = ("embed", "layer.1", "final")
    first, second = toys.full_logits(lm, [5, 6, 7], taps), toys.full_logits(other, [5, 6, 7], taps)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), first, second)


@pytest.mark.parametrize("tapped", [(), ("layer.0",), ("layer.0", "layer.1")])
def test_a_scan_that_ends_where_layers_are_tapped_gives_the_rows_of_all(tapped):
    lm = toys.model()
    stacked = {**lm.params, "layers": decoder.stack(lm.params["layers"])}
    tokens = jnp.asarray([[5, 6, 7, 8]])
    mask = masks.MaskProgram(
        cached=jnp.zeros(1, jnp.int32),
        positions=jnp.arange(4)[None],
        num_new=jnp.asarray([4], jnp.int32),
    )
    one, other = (lm.target.forward(p, tokens, mask, None, tapped) for p in (lm.params, stacked))
    for rows, together in zip(one.rows, other.rows, strict=True):
        np.testing.assert_allclose(jnp.stack(rows), together, atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), one.taps, other.taps)


def test_where_a_layer_is_summed_changes_nothing(monkeypatch):
    lm = toys.model()
    stacked = {**lm.params, "layers": decoder.stack(lm.params["layers"])}

    def out(max_length):
        # A config of its own, and so a trace of its own.
        config = dataclasses.replace(lm.config, max_length=max_length)
        taps = ("layer.0", "layer.1", "final")
        return toys.full_logits(api.from_params(config, stacked), [5, 6, 7, 8], taps)

    here = out(901)
    monkeypatch.setattr(decoder.attention, "device_kind", lambda backend: "TPU v5")
    jax.tree.map(np.testing.assert_array_equal, out(902), here)


def test_names_are_those_of_the_checkpoint():
    for config in (toys.config(qkv_bias=True, o_bias=True, mlp_bias=True), toys.gemma_like()):
        params = toys.params(config)
        flat = decoder.flatten(params)
        assert {name: leaf.shape for name, leaf in flat.items()} == param_shapes(config)
        again = decoder.nest(config, flat)
        assert jax.tree.structure(again) == jax.tree.structure(params)
        stacked = {**params, "layers": decoder.stack(params["layers"])}
        for name, leaf in decoder.flatten(stacked).items():
            assert np.array_equal(leaf, flat[name])


def test_unknown_taps_are_refused():
    with pytest.raises(InputError, match="layer.2.*from 0 to 1"):
        toys.full_logits(toys.model(), [1], taps=("layer.2",))


def forward(lm, tokens, **program):
    size = len(tokens)
    mask = masks.MaskProgram(
        cached=jnp.zeros(1, jnp.int32),
        positions=jnp.arange(size, dtype=jnp.int32)[None],
        num_new=jnp.full(1, size, jnp.int32),
        **program,
    )
    return np.asarray(lm.target.forward(lm.params, jnp.array([tokens]), mask, None).hidden[0])


def influence(lm, **program):
    """`[query, key]`: whether changing a token changes a hidden state, found by trying."""
    tokens = [3, 1, 4, 1, 5, 9]
    base = forward(lm, tokens, **program)
    rows = []
    for key in range(len(tokens)):
        changed = tokens[:key] + [tokens[key] + 7] + tokens[key + 1 :]
        rows.append(np.abs(forward(lm, changed, **program) - base).max(-1) > 1e-6)
    return np.array(rows).T


def test_the_mask_is_an_argument():
    one_layer = toys.config(num_layers=1, layer_windows=(0,))
    lm = api.from_params(one_layer, toys.params(one_layer))
    index = np.arange(6)
    causal = index[None] <= index[:, None]
    assert np.array_equal(influence(lm), causal)
    assert influence(lm, rule="bidirectional").all()
    blocks = index[None] // 2 <= index[:, None] // 2
    assert np.array_equal(influence(lm, rule="block_causal", block=2), blocks)
    sees = np.eye(6, dtype=bool)
    sees[4, [0, 2]] = True
    tree = masks.pack_ancestors(jnp.asarray(sees)[None])
    assert np.array_equal(influence(lm, rule="tree", ancestors=tree), sees)
    windowed = dataclasses.replace(one_layer, layer_windows=(3,))
    narrow = api.from_params(windowed, lm.params)
    assert np.array_equal(influence(narrow), causal & (index[:, None] - index[None] < 3))


def test_bfloat16_is_close_to_float32():
    lm = toys.model("gemma")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), lm.params)
    low = api.from_params(lm.config, half)
    wide = api.from_params(lm.config, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half))
    a, _ = toys.full_logits(low, [1, 2, 3, 4])
    b, _ = toys.full_logits(wide, [1, 2, 3, 4])
    assert a.dtype == np.float32
    assert 0 < np.abs(a - b).max() < 0.03 * np.abs(b).max()
    out = jd.generate(low, [[1, 2, 3]], max_new_tokens=4)  # one row: the doubled product
    assert len(out.tokens[0]) == 4


def test_llama3_rope_keeps_short_waves_and_stretches_long_ones():
    plain = rope.frequencies(Rope(theta=500_000.0), 64)
    scaled = rope.frequencies(
        Rope(theta=500_000.0, scaling="llama3", factor=8.0, original_max_length=8192), 64
    )
    wavelength = 2 * np.pi / plain
    assert np.array_equal(scaled[wavelength < 2048], plain[wavelength < 2048])
    np.testing.assert_allclose(scaled[wavelength > 8192], plain[wavelength > 8192] / 8)
    middle = (wavelength >= 2048) & (wavelength <= 8192)
    assert middle.any() and (scaled[middle] < plain[middle]).all()
