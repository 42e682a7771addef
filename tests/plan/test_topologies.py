"""Programs compiled for TPUs and GPUs that are not here."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdecode.dist import mesh as meshes
from jaxdecode.errors import InputError
from jaxdecode.plan import hardware, hlo, programs, traffic
from jaxdecode.plan import setup as setups
from tests.plan import small
from tests.plan.topologies import needs_cuda_compiler, needs_tpu_compiler, quiet_compilers

__all__ = ["quiet_compilers"]


@needs_tpu_compiler
@pytest.mark.parametrize("text", ["v4:2x2x1", "v5e:1x1", "v5p:2x2x1", "v6e:2x4", "tpu7x:2x2x1"])
def test_every_tpu_gives_its_devices(text):
    topology = hardware.parse(text)
    assert len(hardware.devices(topology)) == topology.num_devices


@needs_tpu_compiler
def test_a_slice_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="v5e:3x3.*does not know this slice"):
        hardware.devices(hardware.parse("v5e:3x3"))


@needs_cuda_compiler
@pytest.mark.parametrize("text", ["a100:8", "h100:8", "b200:16"])
def test_every_gpu_gives_its_devices(text):
    topology = hardware.parse(text)
    assert len(hardware.devices(topology)) == topology.num_devices


def weights_only(devices, split: int) -> tuple[traffic.Traffic, int]:
    """A scan over matrices split in columns: the account, and bytes of weights per device."""
    layers, width = 4, 4096
    mesh = Mesh(meshes.make({"model": split}, devices).devices.reshape(-1), ("model",))

    def place(shape, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    def run(up, down, x):
        def body(x, layer):
            return (x @ layer[0]) @ layer[1], None

        return jax.lax.scan(body, x, (up, down))[0]

    up = place((layers, width, width), None, None, "model")
    down = place((layers, width, width), None, "model", None)
    compiled = jax.jit(run).lower(up, down, place((1, width))).compile()
    found = traffic.account(hlo.parse(compiled.as_text()))
    return found, 2 * 2 * layers * width * width // split


@needs_tpu_compiler
@pytest.mark.parametrize("text", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_reader_finds_the_weights_and_nothing_else(text):
    found, weights = weights_only(hardware.devices(hardware.parse(text)), 4)
    assert found.hbm_bytes == pytest.approx(weights, rel=0.005)
    (collective,) = found.collectives
    assert (collective.kind, collective.group, collective.times) == ("all-reduce", 4, 4)


@needs_tpu_compiler
def test_a_twin_that_forgets_trip_counts_is_caught(monkeypatch):
    monkeypatch.setattr(hlo.Module, "trips", lambda *args: 1)
    found, weights = weights_only(hardware.devices(hardware.parse("v5e:2x2")), 4)
    assert found.hbm_bytes < weights / 3


@needs_cuda_compiler
def test_gpus_read_stacked_weights_more_than_once():
    found, weights = weights_only(hardware.devices(hardware.parse("h100:4")), 4)
    assert weights < found.hbm_bytes < 4 * weights


@needs_tpu_compiler
def test_a_program_that_does_not_fit_says_so():
    devices = hardware.devices(hardware.parse("v5e:2x2"))
    place = jax.sharding.SingleDeviceSharding(devices[0])
    large = jax.ShapeDtypeStruct((5 * 2**30,), jnp.float32, sharding=place)
    with pytest.raises(programs.OutOfMemory, match="(?i)hbm"):
        programs.compiled("doubling", lambda: jax.jit(lambda x: x * 2 + x.sum()).lower(large))


@needs_tpu_compiler
def test_a_step_compiles_for_a_slice():
    mesh = meshes.make("data=2,model=2", hardware.devices(hardware.parse("v5e:2x2")))
    made = setups.setup(
        small.CONFIG, mesh, batch=4, context=100, dtype="bfloat16", kv_dtype="bfloat16"
    )
    # A layer sees only a window, which kernels do not mask.
    assert made.backend.impl == "xla" and made.stacked
    found = programs.compile_step(made, 4)
    assert found.traffic is not None and found.aliased > 0
    (loop,) = {c.loops[:1] for c in found.traffic.step().collectives}
    assert loop == found.traffic.unknown_loops[:1]
