"""Steps of the loop at the shape of Llama 3 8B, compiled for slices that are not here.

The bytes that a step moves are held against the analytic floor, and what passes between devices
against an allow-list. Contexts fill their cache, so that the kernel's estimate is what it reads.
"""

import functools
import itertools

import jax
import pytest

from jaxdecode.convert.catalog import model_shape
from jaxdecode.dist import axes
from jaxdecode.dist import mesh as meshes
from jaxdecode.engine import SLACK
from jaxdecode.plan import hardware, programs, traffic
from jaxdecode.plan import setup as setups
from jaxdecode.plan.floor import floor
from tests.plan.topologies import needs_cuda_compiler, needs_tpu_compiler, quiet_compilers

__all__ = ["quiet_compilers"]
SHORT, LONG = 2048, 16384
MESHES = {
    "v5e:4x4": ("data=2,model=8", 16),
    "v5p:4x4x4": ("data=8,model=8", 64),
    "v6e:4x4": ("data=2,model=8", 16),
    "h100:8": ("data=1,model=8", 8),
}
# A step of so many nodes over so many slots reads at most so much more than its floor.
BOUNDS = [
    ("v5e:4x4", 1, LONG, 1.05),
    ("v5e:4x4", 64, LONG, 1.05),
    ("v5e:4x4", 1, SHORT, 1.05),
    ("v5p:4x4x4", 1, SHORT, 1.05),
    ("v5p:4x4x4", 1, LONG, 1.05),
    ("v5p:4x4x4", 64, LONG, 1.45),
    ("v6e:4x4", 64, LONG, 1.10),
]
FAST = 2


def make(name: str, slots: int, batch: int | None = None) -> setups.Setup:
    mesh, usual = MESHES[name]
    devices = hardware.devices(hardware.parse(name))
    made = setups.setup(
        model_shape("llama3-8b"),
        meshes.make(mesh, devices),
        batch=batch or usual,
        context=slots - SLACK,
        layers="stacked",
    )
    assert made.slots == slots
    return made


setup = functools.lru_cache(maxsize=2)(make)


@functools.lru_cache(maxsize=2)
def compiled(name: str, nodes: int, slots: int) -> programs.Program:
    found = programs.compile_step(setup(name, slots), nodes)
    assert found.traffic is not None
    return found


def check_floor(name, nodes, slots, bound):
    made = setup(name, slots)
    ratio = compiled(name, nodes, slots).traffic.step().hbm_bytes / floor(made, nodes).hbm_bytes
    assert 0.99 < ratio <= bound


def judge_collectives(made, nodes, found):
    layers = made.config.num_layers
    in_layers = [c for c in found if c.times == layers]
    assert [c.kind for c in in_layers] == ["all-reduce"] * 2
    rows = made.batch // made.mesh.shape["data"] * nodes
    stream = rows * made.config.hidden_size * made.dtype.itemsize
    assert all(c.bytes == stream for c in in_layers)
    # Besides: the embedding's rows, and numbers per row of argmax and log-probability.
    for other in found:
        if other not in in_layers:
            assert other.bytes <= (stream if other.kind == "all-reduce" else 64 * rows), other


def judge_cache(made, found):
    cache = setups.cache(made)
    held = setups.shard_bytes(cache)
    assert found.aliased >= held
    layer = setups.shard_bytes(setups.params(made)["layers"]) // made.config.num_layers
    # A scan on GPU copies the weights of a layer before it uses them.
    on_gpu = made.mesh.devices.flat[0].platform != "tpu"
    assert found.temporaries < 0.04 * held + (1.1 * layer if on_gpu else 0)
    judge_copies(made, found)


def judge_copies(made, found):
    cache = setups.cache(made)
    for leaf in (cache.key, cache.value):
        own = leaf.sharding.shard_shape(leaf.shape)
        for dims in set(itertools.permutations(own)):
            assert not traffic.copies(found.module, dims), dims


def check_collectives(name, nodes, slots):
    found = compiled(name, nodes, slots).traffic.step().collectives
    judge_collectives(setup(name, slots), nodes, found)


def check_cache(name, nodes, slots):
    judge_cache(setup(name, slots), compiled(name, nodes, slots))


def check(name, nodes, slots, bound):
    check_floor(name, nodes, slots, bound)
    check_collectives(name, nodes, slots)
    check_cache(name, nodes, slots)


@needs_tpu_compiler
@pytest.mark.parametrize(("name", "nodes", "slots", "bound"), BOUNDS[:FAST])
def test_a_step_moves_what_it_must_and_little_else(name, nodes, slots, bound):
    check(name, nodes, slots, bound)


@needs_tpu_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("name", "nodes", "slots", "bound"), BOUNDS[FAST:])
def test_every_slice_moves_what_it_must_and_little_else(name, nodes, slots, bound):
    check(name, nodes, slots, bound)


@needs_tpu_compiler
@pytest.mark.slow
def test_without_the_kernel_a_tree_reads_the_cache_again_and_again():
    made = setups.setup(
        model_shape("llama3-8b"),
        setup("v5e:4x4", LONG).mesh,
        batch=16,
        context=LONG - SLACK,
        attention="xla",
    )
    plain = programs.compile_step(made, 64).traffic.step().hbm_bytes
    assert plain > 2 * floor(made, 64).hbm_bytes


@needs_tpu_compiler
@pytest.mark.slow
def test_a_large_batch_is_written_in_place_too():
    # 80 rows on each device: a scatter of so many made XLA copy the cache.
    made = make("v5e:4x4", SHORT, batch=160)
    judge_cache(made, programs.compile_step(made, 1))


@needs_tpu_compiler
@pytest.mark.slow
def test_a_twin_that_sums_logits_between_devices_is_caught(monkeypatch):
    # The output head split along what is summed: every device then gets all logits.
    monkeypatch.setitem(axes._PARAMS, "head.kernel", (None, "vocab"))
    name, slots = "v5e:4x4", SHORT
    made = make(name, slots)
    found = programs.compile_step(made, 1)
    assert found.traffic is not None
    with pytest.raises(AssertionError, match="all-reduce"):
        judge_collectives(made, 1, found.traffic.step().collectives)


@needs_tpu_compiler
@pytest.mark.slow
def test_a_twin_that_keeps_the_old_cache_is_caught(monkeypatch):
    keeping = jax.jit(programs.loop.run.__wrapped__, static_argnames=("target", "method"))
    monkeypatch.setattr(programs.loop, "run", keeping)
    made = make("v5e:4x4", SHORT)
    with pytest.raises(AssertionError):
        judge_cache(made, programs.compile_step(made, 1))


@needs_cuda_compiler
@pytest.mark.slow
def test_gpus_exchange_two_sums_per_layer_and_write_in_place():
    check_collectives("h100:8", 1, SHORT)
    check_cache("h100:8", 1, SHORT)


@pytest.mark.slow
@needs_tpu_compiler
def test_widths_of_one_program_copy_no_cache():
    """A switch copied it with every pass; a layout asked of all devices together gathered it."""
    devices = meshes.make("data=4,model=4", hardware.devices(hardware.parse("v5e:4x4")))
    made = setups.setup(model_shape("llada-8b"), devices, batch=16, context=1024, layers="stacked")
    judge_copies(made, programs.compile_method(made, "fast_dllm", {}))
