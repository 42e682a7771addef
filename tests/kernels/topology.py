"""TPU generations to compile for, with no TPU attached."""

import functools
import importlib.util
import os

import pytest

# libtpu would otherwise ask a metadata server, and refuse a second process on this machine.
for name, value in {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
}.items():
    os.environ.setdefault(name, value)

# The default v4 has two devices per chip, of which no mesh can be made.
GENERATIONS = {
    "v4": ("v4:2x2x1", {"chip_config_name": "megacore"}),
    "v5e": ("v5e:2x2", {}),
    "v5p": ("v5p:2x2x1", {}),
    "v6e": ("v6e:2x2", {}),
    "tpu7x": ("tpu7x:2x2x1", {}),
}
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'jaxdecode[tpu]' compiles these for TPU",
)


@functools.cache
def devices(generation: str) -> list:
    """The devices of a small slice: four, or eight where a chip has two."""
    from jax.experimental import topologies

    name, options = GENERATIONS[generation]
    found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    return list(found.devices)
