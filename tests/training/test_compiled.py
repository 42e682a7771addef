"""A step for a pod that is not here: it compiles and fits."""

import importlib.util

import pytest

from jaxdecode.convert import catalog
from jaxdecode.dist import mesh as meshes
from jaxdecode.plan import hardware
from jaxdecode.plan import setup as plans
from jaxdecode.training.compiled import compile_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the TPU compiler"),
]


@pytest.mark.parametrize(
    ("topology", "mesh", "batch"),
    [("v5e:4x4", "data=4,model=4", 16), ("v5p:4x4x4", "data=16,model=4", 64)],
)
def test_eagle3_for_an_8b_target_fits(topology, mesh, batch):
    found = hardware.parse(topology)
    devices = meshes.make(mesh, hardware.devices(found))
    target = catalog.model_shape("llama3-8b")
    made = plans.setup(target, devices, batch=batch, context=2048)
    program = compile_step(
        made,
        "eagle3",
        length=2048,
        shape={"draft_vocab": 32000},
        settings={"num_passes": 7, "num_places": 512},
    )
    # The optimizer's state and the heads are given back in place.
    assert program.aliased > 0
    assert program.peak < 0.9 * found.chip.hbm_bytes
