"""Least squares over batches, against NumPy."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxdecode.training import linear
from tests.training import gate


def test_the_map_is_that_of_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 7, 4)).astype(np.float32)
    y = rng.normal(size=(2, 3, 7, 2)).astype(np.float32)
    weight = (rng.random((2, 3, 7)) > 0.3).astype(np.float32)
    rows = gate.batch([[1] * 7] * 3)
    batches = [
        dataclasses.replace(rows, weight=weight[i], features={"x": x[i], "y": y[i]})
        for i in range(2)
    ]

    def pairs(batch):
        return [(batch.features["x"], batch.features["y"], batch.weight)]

    ((kernel, bias),) = linear.fit(batches, pairs, 0.5)
    kept = weight > 0
    inputs = np.concatenate([x[kept], np.ones((kept.sum(), 1))], axis=1)
    square = inputs.T @ inputs + np.diag([0.5] * 4 + [1e-6])
    wanted = np.linalg.solve(square, inputs.T @ y[kept])
    np.testing.assert_allclose(kernel, wanted[:-1], atol=1e-4)
    np.testing.assert_allclose(bias, wanted[-1], atol=1e-4)
    assert jnp.asarray(kernel).dtype == jnp.float32
