"""Child process of test_devices: decodes on a data x model mesh of fake CPU devices.

Prints, as JSON, the method names whose tokens differ from those of one device.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdecode import engine, options
from jaxdecode.core import loop
from tests import toys

NEW = 10
PROMPTS = [[3, 1, 4, 1, 5, 3, 1], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9], [1, 2, 1, 2]]


def spread(tree, mesh, axis, dim):
    """Every array split over a mesh axis along `dim` (None: the last) where it divides evenly."""

    def put(array):
        place = [None] * array.ndim
        at = array.ndim - 1 if dim is None else dim
        if array.ndim > at and array.shape[at] % mesh.shape[axis] == 0:
            place[at] = axis
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*place)))

    return jax.tree.map(put, tree)


def tokens(name, mesh):
    lm = toys.model()
    built = toys.built(lm, name)
    request = toys.request(lm, options.Options(max_new_tokens=NEW, **toys.drawn(name)), PROMPTS)
    state = engine.prefilled(built, request, PROMPTS, NEW)
    weights = built.weights
    if mesh is not None:
        weights = spread(weights, mesh, "model", None)
        # Rows come first in every array of the state but a stacked cache's.
        state, request = spread((state, request), mesh, "data", 0)
    end = loop.run(weights, request, state, jnp.int32(99), target=lm.target, method=built.method)
    return np.asarray(end.canvas.tokens)


def main():
    assert len(jax.devices()) == 8
    mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("data", "model"))
    names = sys.argv[1].split(",")
    different = [name for name in names if (tokens(name, None) != tokens(name, mesh)).any()]
    print(json.dumps(different))


if __name__ == "__main__":
    main()
