"""The GPU kernel compiled to machine code for three generations, with no GPU.

Needs JAX_PLATFORMS=cpu and the `gpu-aot` extra; otherwise everything here skips and says so.
"""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdecode.dist import gpu_topology
from jaxdecode.errors import UnknownNameError, UnsupportedError
from pallas_kernels import worklist
from pallas_kernels.tree_attention import api, gpu
from pallas_kernels.tree_attention.problem import Problem

KINDS = ("a100", "h100", "b200")
ARCHITECTURES = {"a100": "sm_80", "h100": "sm_90a", "b200": "sm_100a"}
# As users compile (the suite's own flags spare the optimiser), and the PTX is kept.
OPTIONS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_dump_emitter_re": "ptx",
}


def _devices(kind, num_gpus=1):
    try:
        return gpu_topology.devices(kind, num_gpus)
    except UnsupportedError as error:
        pytest.skip(str(error))


def _ptxas():
    nvidia = importlib.util.find_spec("nvidia")
    for folder in nvidia.submodule_search_locations if nvidia else ():
        if found := shutil.which("ptxas", path=str(Path(folder) / "cu13" / "bin")):
            return found
    return shutil.which("ptxas") or pytest.skip("needs ptxas; pip install 'jaxdecode[gpu-aot]'.")


def _lower(sizes, devices, *, blocks=None):
    """The call for these sizes; with several devices, KV heads are split between them."""
    mesh = Mesh(devices, ("model",))
    heads, every = PartitionSpec(None, "model"), PartitionSpec()
    slots = PartitionSpec(None, None, "model")
    s, num_pages = sizes, sizes.batch * sizes.pages_per_row
    pages, rows = (s.layers, num_pages, s.kv_heads), (s.batch, s.kv_heads)
    paged = sizes.pages_per_row > 1

    def shape(spec, *sizes_, dtype=s.dtype):
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(sizes_, dtype, sharding=sharding)

    def attend(query, new_key, new_value, key, value, lengths, words, layer, table):
        work = worklist.plan(
            lengths,
            num_rows=s.rows,
            page=s.page,
            page_block=s.page_block,
            table=table if paged else None,
        )
        arrays = (query, new_key, new_value, key, value, work, words)
        return api.tree_attention(*arrays, layer=layer, impl="gpu", blocks=blocks)

    specs = (heads, heads, heads, slots, slots, every, every, every, every)
    sharded = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=heads)
    return jax.jit(sharded).lower(
        shape(heads, *rows, s.group, s.rows, s.head_dim),
        shape(heads, *rows, s.head_dim, s.rows),
        shape(heads, *rows, s.rows, s.head_dim),
        shape(slots, *pages, s.head_dim, s.page),
        shape(slots, *pages, s.page, s.head_dim),
        shape(every, s.batch, dtype=jnp.int32),
        shape(every, s.batch, -(-s.rows // 32), s.rows, dtype=jnp.uint32),
        shape(every, dtype=jnp.int32),
        shape(every, s.batch, s.pages_per_row, dtype=jnp.int32),
    )


def _registers(kind, lowered, folder):
    """Registers and spilled bytes of the kernel, its PTX, and the compiled program."""
    compiled = lowered.compile(compiler_options={**OPTIONS, "xla_dump_to": str(folder)})
    (path,) = [p for p in folder.glob("*.ptx") if "entry tree_attention" in p.read_text()]
    command = [_ptxas(), "-v", f"-arch={gpu_topology.architecture(kind)}", str(path)]
    report = subprocess.run(
        [*command, "-o", str(folder / "cubin")], capture_output=True, text=True, check=True
    ).stderr
    report = report[report.index("tree_attention") :]
    spills = [int(x) for x in re.findall(r"(\d+) bytes spill", report)[:2]]
    used = re.search(r"Used (\d+) registers", report)
    assert used, report
    return int(used[1]), sum(spills), path.read_text(), compiled


def _shared_memory(folder):
    """Bytes of shared memory of the largest launch."""
    text = "".join(p.read_text() for p in folder.glob("*thunk*.txt"))
    return max(int(x) for x in re.findall(r"shared_memory: (\d+)", text))


def _sizes(rows=64, head_dim=128, dtype="bfloat16", **more):
    page = {"page": 2048, "page_block": 512, **more}
    return Problem(
        batch=2, kv_heads=2, group=4, rows=rows, head_dim=head_dim, dtype=dtype, layers=3, **page
    )


def _check(kind, sizes, folder, *, num_gpus=1, blocks=None):
    """Compiles without spills and within shared memory; the PTX and the program."""
    lowered = _lower(sizes, _devices(kind, num_gpus), blocks=blocks)
    registers, spilled, ptx, compiled = _registers(kind, lowered, folder)
    shared = _shared_memory(folder)
    assert registers <= 255 and spilled == 0, f"{registers} registers, {spilled} bytes spilled"
    assert shared <= gpu_topology.figure(kind, "shared_memory_per_block_optin")
    print(f"{kind} {sizes.dtype} T={sizes.rows} d={sizes.head_dim}: {registers=} {shared=}")
    return ptx, compiled


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("rows", [32, 64, 256])
def test_matrix(kind, dtype, head_dim, rows, tmp_path):
    """With the kind's own sizes, and with those for unknown devices where they differ."""
    sizes = _sizes(rows, head_dim, dtype)
    _check(kind, sizes, tmp_path / "own")
    default = gpu.blocks_for(sizes)
    if gpu.blocks_for(sizes, gpu_topology.device_kind(kind)) != default:
        _check(kind, sizes, tmp_path / "default", blocks=vars(default))


@pytest.mark.parametrize("kind", KINDS)
def test_tensor_cores_and_asynchronous_copies(kind, tmp_path):
    """What the generation has is used, and the cache is read 16 bytes at a time."""
    ptx, _ = _check(kind, _sizes(), tmp_path)
    product = {"a100": "mma.sync", "h100": "wgmma.mma_async", "b200": "tcgen05.mma"}[kind]
    assert product in ptx
    assert f".target {ARCHITECTURES[kind]}" in ptx
    assert "cp.async.cg.shared.global" in ptx


def test_float32_is_not_rounded(tmp_path, monkeypatch):
    """Each product is three of rounded parts; its twin rounds and takes a third of them."""
    ptx, _ = _check("a100", _sizes(dtype="float32"), tmp_path / "exact")
    monkeypatch.setitem(gpu._PRECISION, "float32", None)
    twin, _ = _check("a100", _sizes(dtype="float32"), tmp_path / "rounded")
    products = [len(re.findall(r"mma\.sync\S*tf32", text)) for text in (ptx, twin)]
    assert products[0] == 3 * products[1] > 0


def test_a_spill_would_be_noticed(tmp_path):
    with pytest.raises(AssertionError, match="bytes spilled"):
        _check("h100", _sizes(dtype="float32"), tmp_path, blocks={"rows": 64, "columns": 32})


@pytest.mark.parametrize(
    "more",
    [
        {"page": 128, "page_block": 128, "pages_per_row": 8},
        {"page": 2**17, "page_block": 2048, "layers": 32},
        {"head_dim": 256},
        {"rows": 1},
    ],
    ids=["paged", "cache over 4 GiB", "head_dim 256", "one row"],
)
def test_other_shapes(more, tmp_path):
    defaults = {"rows": 64, "head_dim": 128, "page": 2048, "page_block": 512}
    settings = {**defaults, **more}
    sizes = Problem(batch=2, kv_heads=2, group=4, dtype="bfloat16", **{"layers": 3, **settings})
    _check("h100", sizes, tmp_path)


@pytest.mark.parametrize("num_gpus", [1, 8])
def test_the_cache_is_read_where_it_lies(num_gpus, tmp_path):
    """Nothing in the program has the shape of a cache but its parameters."""
    sizes = Problem(
        batch=2, kv_heads=8, group=4, rows=64, head_dim=128, dtype="bfloat16", page=2048,
        page_block=512, layers=3,
    )  # fmt: skip
    _, compiled = _check("h100", sizes, tmp_path, num_gpus=num_gpus)
    text = compiled.as_text()
    made = [line for line in text.splitlines() if re.search(r"= bf16\[[\d,]*2048[\d,]*\]", line)]
    assert len(made) == 2 and all(" parameter(" in line for line in made), made
    assert "all-" not in text and "collective" not in text


def test_names_and_figures():
    for kind in gpu_topology.KINDS:
        assert gpu_topology.figure(kind, "device_memory_size") > 2**36
        assert gpu_topology.device_kind(kind).startswith(f"NVIDIA {kind.upper()}")
    assert {kind: gpu_topology.architecture(kind) for kind in KINDS} == ARCHITECTURES
    with pytest.raises(UnknownNameError, match="Did you mean 'h100' or 'h200'"):
        gpu_topology.devices("h1000")
    with pytest.raises(UnknownNameError, match="no 'weight'"):
        gpu_topology.figure("h100", "weight")
