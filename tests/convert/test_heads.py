"""Folders of trained heads: round trips, damage, and heads of another model."""

import json

import jax
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.errors import CorruptCheckpointError, DestinationExistsError, InputError
from jaxdecode.evals import toys as smallest
from jaxdecode.models import kv_heads
from tests import toys


@pytest.fixture
def heads():
    return smallest.heads("medusa", toys.model())


def test_what_was_saved_is_loaded(heads, tmp_path):
    jd.api.head_files.save_heads(heads, tmp_path / "out")
    back = jd.load_heads(tmp_path / "out")
    assert (back.spec, back.target) == (heads.spec, heads.target)
    assert jax.tree.structure(back.params) == jax.tree.structure(heads.params)
    for a, b in zip(jax.tree.leaves(back.params), jax.tree.leaves(heads.params), strict=True):
        np.testing.assert_array_equal(a, b)
    asked = dict(method="medusa", max_new_tokens=8)
    lm = toys.model()
    from_folder = jd.generate(lm, [1, 2], heads=tmp_path / "out", **asked)
    assert from_folder.tokens == jd.generate(lm, [1, 2], heads=heads, **asked).tokens
    with pytest.raises(DestinationExistsError):
        jd.api.head_files.save_heads(heads, tmp_path / "out")


def test_every_flipped_byte_is_noticed(heads, tmp_path):
    jd.api.head_files.save_heads(heads, tmp_path / "out")
    file = tmp_path / "out" / "heads.safetensors"
    data = bytearray(file.read_bytes())
    for place in np.random.default_rng(0).integers(0, len(data), 50):
        twin = bytearray(data)
        twin[place] ^= 1
        file.write_bytes(twin)
        with pytest.raises(CorruptCheckpointError, match="does not have the hash"):
            jd.load_heads(tmp_path / "out")
    file.write_bytes(data[:-7])
    with pytest.raises(CorruptCheckpointError, match="hash"):
        jd.load_heads(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format": "other"}, InputError, "its manifest is of another format"),
        ({"version": 99}, InputError, "version 99"),
        ({"kind": "medussa"}, InputError, "Did you mean 'medusa'"),
        ({"shape": {"num_hats": 3}}, InputError, "have no 'num_hats'.*Did you mean 'num_heads'"),
        ({"shape": {"num_heads": 0}}, InputError, "num_heads=0"),
        ({"shape": 3}, CorruptCheckpointError, "lacks kind, shape"),
    ],
)
def test_manifests_that_lie_are_refused(change, error, message, heads, tmp_path):
    jd.api.head_files.save_heads(heads, tmp_path / "out")
    file = tmp_path / "out" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(error, match=message):
        jd.load_heads(tmp_path / "out")


def test_heads_of_another_model_are_refused_by_size(heads):
    wider = toys.config(hidden_size=40)
    lm = jd.api.from_params(wider, toys.params(wider))
    with pytest.raises(InputError, match="hidden_size 32, but the target has 40"):
        jd.generate(lm, [1], method="medusa", heads=heads)


def test_parameters_of_another_shape_are_refused_by_name(heads):
    lm = toys.model()
    wrong = jd.Heads(
        spec=heads.spec,
        params=heads.params | {"blocks.0.bias": np.zeros((3, 32))},
        target=heads.target,
    )
    with pytest.raises(CorruptCheckpointError, match=r"'blocks.0.bias' should have .*\(4, 32\)"):
        jd.generate(lm, [1], method="medusa", heads=wrong)


def test_methods_and_heads_must_belong_together(heads):
    lm = toys.model()
    with pytest.raises(InputError, match="needs trained heads of kind 'medusa'"):
        jd.generate(lm, [1], method="medusa")
    with pytest.raises(InputError, match="does not use heads of kind 'medusa'"):
        jd.generate(lm, [1], method="ar", heads=heads)
    with pytest.raises(InputError, match="not a folder with trained heads"):
        jd.generate(lm, [1], method="medusa", heads="nowhere")


@pytest.mark.parametrize("kind", ["falcon", "mtp_future"])
def test_layers_of_heads_follow_a_target_whose_kv_heads_are_repeated(kind):
    """As they are where the target is split over more devices than it has KV heads."""
    lm = toys.model()
    repeated = kv_heads.repeat_config(lm.config, 2)
    heads = smallest.heads(kind, lm)
    fitted = jd.api.head_files.fitting(heads, repeated, np.float32)
    for name, leaf in jd.api.head_files.flattened(heads.params).items():
        found = jd.api.head_files.flattened(fitted.params)[name]
        if "attn/qkv/" in name and not name.endswith("/a"):
            leaf = kv_heads.repeat_array(".attn.qkv.", leaf, 2)
            assert found.shape[-3:-1] == (4, 3)
        np.testing.assert_array_equal(found, leaf)
