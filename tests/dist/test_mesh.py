"""Meshes from text."""

import types

import jax
import numpy as np
import pytest
from jax.experimental import mesh_utils

from jaxdecode.dist import mesh
from jaxdecode.errors import InputError, UnknownNameError


def test_axes_that_are_not_named_have_size_one():
    assert mesh.parse("model=4") == {"data": 1, "model": 4}
    assert mesh.parse(" data = 2 , model=8 ") == {"data": 2, "model": 8}
    assert mesh.parse(mesh.describe({"data": 2, "model": 8})) == {"data": 2, "model": 8}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("modle=4", UnknownNameError, "modle.*'model'"),
        ("model=0", InputError, "model='0'"),
        ("model=x", InputError, "model='x'"),
        ("model", InputError, "model=''"),
        ("model=2,model=4", InputError, "twice"),
        ("model=7777", InputError, "needs 7777 devices, but there are 1; .* multiply to 1"),
    ],
)
def test_bad_text_names_the_value_and_the_fix(text, error, message):
    with pytest.raises(error, match=message):
        mesh.make(text, jax.devices()[:1])


def devices(count, slices):
    return [
        types.SimpleNamespace(id=i, platform="cpu", slice_index=i * slices // count)
        for i in range(count)
    ]


def test_model_never_leaves_a_slice(monkeypatch):
    def hybrid(inner, outer, devices, **_):
        assert (inner, outer) == ((2, 4), (2, 1))
        return np.asarray(devices, dtype=object).reshape(4, 4)

    monkeypatch.setattr(mesh_utils, "create_hybrid_device_mesh", hybrid)
    monkeypatch.setattr(mesh, "Mesh", lambda grid, axes: (grid, axes))
    grid, axes = mesh.make("data=4,model=4", devices(16, 2))
    assert axes == ("data", "model")
    assert all(len({device.slice_index for device in row}) == 1 for row in grid)


def test_data_must_divide_by_the_slices():
    with pytest.raises(InputError, match="2 slices.*multiple of 2"):
        mesh.make("data=1,model=16", devices(16, 2))
