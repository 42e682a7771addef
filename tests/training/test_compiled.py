"""A step for a pod that is not here: it compiles, fits, and moves little more than it must."""

import collections
import importlib.util

import pytest

from jaxdecode.convert import catalog
from jaxdecode.dist import mesh as meshes
from jaxdecode.plan import hardware
from jaxdecode.plan import setup as plans
from jaxdecode.training import floor
from jaxdecode.training.compiled import compile_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the TPU compiler"),
]


LAYERS, PASSES = 32, 7
SETTINGS = {"num_passes": PASSES, "num_places": 512}
MEGABYTE = 2**20
# Bytes that are sent beyond the floor, which gets smaller with the work; these do not.
EXCESS = 0.48e9


@pytest.mark.parametrize(
    ("topology", "mesh", "batch", "hbm"),
    [
        ("v5e:4x4", "data=4,model=4", 16, 1.1),
        ("v5p:4x4x4", "data=16,model=4", 64, 1.8),
    ],
)
def test_eagle3_for_an_8b_target(topology, mesh, batch, hbm):
    found = hardware.parse(topology)
    devices = meshes.make(mesh, hardware.devices(found))
    target = catalog.model_shape("llama3-8b")
    made = plans.setup(target, devices, batch=batch, context=2048)
    program = compile_step(
        made, "eagle3", length=2048, shape={"draft_vocab": 32000}, settings=SETTINGS
    )
    # The optimizer's state and the heads are given back in place.
    assert program.aliased > 0
    assert program.peak < 0.9 * found.chip.hbm_bytes

    assert program.traffic is not None
    least = floor.eagle3(made, length=2048, draft_vocab=32000, **SETTINGS)
    moved = floor.moved(program.traffic)
    print(topology, f"needs {program.peak / 1e9:.1f} GB")
    for kind in floor.KINDS:
        print(topology, kind, *(f"{x / 1e9:.2f}" for x in (*least[kind], *moved[kind])))
    assert sum(part.hbm for part in moved.values()) < hbm * sum(p.hbm for p in least.values())
    sent, must = (sum(part.wire for part in parts.values()) for parts in (moved, least))
    # The gradient of the losses in float32, the rows of the draft vocabulary, that of a norm.
    assert sent - must < EXCESS

    counts = collections.Counter()
    for one in program.traffic.collectives:
        if one.bytes > MEGABYTE:
            counts[floor.kind_of(one.source), one.kind, one.group] += one.times
    data, model = (made.mesh.shape[axis] for axis in ("data", "model"))
    expected = collections.Counter(
        {
            # The rows of the embedding, and two sums per layer.
            ("target", "all-reduce", model): 1 + 2 * LAYERS,
            # Two sums of each pass and of its gradient, and the gradient of the tokens' norm.
            ("heads", "all-reduce", model): 4 * PASSES + 1,
            # The gradient of every kernel once; XLA sums that of queries, keys and values whole.
            ("heads", "reduce-scatter", data): 4,
            ("losses", "reduce-scatter", data): 1,
            # One for each chunk of places.
            ("losses", "all-reduce", model): 8,
            ("parameters", "all-gather", data): 6,
            # The target's rows of the draft vocabulary, to where the heads have theirs; their sum
            # over the target's parts is joined with one of the heads'.
            ("parameters", "collective-permute", 2): 1,
        }
    )
    expected["heads", "all-reduce", data] += 1
    assert counts == expected
