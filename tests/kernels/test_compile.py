"""Every kernel compiles for every TPU generation, alone and in shard_map, and copies no cache."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import rules, worklist
from pallas_kernels.commit import api as commit_api
from pallas_kernels.tree_attention import api, blocks, cases
from tests.kernels.topology import GENERATIONS, devices, needs_libtpu

pytestmark = needs_libtpu
# Rows on data, KV heads on model; the layer is one number.
SPECS = {
    "query": P("data", "model"),
    "new_key": P("data", "model"),
    "new_value": P("data", "model"),
    "cached_key": P(None, "data", "model"),
    "cached_value": P(None, "data", "model"),
    "lengths": P("data"),
    "table": P("data"),
    "words": P("data"),
    "layer": P(),
}
# Covers every pair of sizes, over the generations; the rest of the product is slow.
FAST = {
    "v4": ["rows32-dim64-float32", "rows256-dim128-bfloat16"],
    "v5e": ["rows64-dim128-bfloat16", "rows256-dim64-float32"],
    "v5p": ["rows32-dim128-bfloat16", "rows64-dim64-float32"],
    "v6e": ["rows64-dim64-bfloat16", "rows32-dim128-float32"],
    "tpu7x": ["rows64-dim128-float32", "rows32-dim64-bfloat16"],
}
MATRIX = [
    pytest.param(g, name, how, marks=[] if name in FAST[g] else pytest.mark.slow)
    for g in GENERATIONS
    for name in cases.COMPILE
    for how in ("one device", "shard_map")
]


def mesh(generation):
    chips = devices(generation)
    return Mesh(np.array(chips).reshape(2, -1), ("data", "model"))


def attention(sizes, canvas=None, paged=False):
    """The call that is compiled, planning included."""

    def call(query, new_key, new_value, cached_key, cached_value, lengths, table, words, layer):
        work = worklist.plan(
            lengths,
            num_rows=sizes.rows,
            page=sizes.page,
            page_block=sizes.page_block,
            table=table if paged else None,
            canvas=canvas,
        )
        arrays = query, new_key, new_value, cached_key, cached_value, work
        if canvas is None:
            return api.tree_attention(*arrays, words, layer=layer, impl="tpu")
        return api.canvas_attention(*arrays, canvas, layer=layer, impl="tpu")

    return call


def compiled(generation, how, call, arrays, specs, out_specs, donate=()):
    """A program of these arrays, on one device or in shard_map."""
    if how == "one device":
        sharding = SingleDeviceSharding(devices(generation)[0])
        placed = {name: sharding for name in arrays}
    else:
        grid = mesh(generation)
        placed = {name: NamedSharding(grid, specs[name]) for name in arrays}
        in_specs = tuple(specs[name] for name in arrays)
        call = jax.shard_map(call, mesh=grid, in_specs=in_specs, out_specs=out_specs)
    shapes = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed[name]) for name, x in arrays.items()
    ]
    return jax.jit(call, donate_argnums=donate).lower(*shapes).compile()


def cache_bytes(arrays, parts=1):
    caches = (arrays["cached_key"], arrays["cached_value"])
    return sum(x.size * x.dtype.itemsize for x in caches) // parts


@pytest.mark.parametrize(("generation", "name", "how"), MATRIX)
def test_tree_attention_compiles(generation, name, how):
    sizes = cases.COMPILE[name]
    arrays = cases.arrays(sizes)
    out = compiled(generation, how, attention(sizes), arrays, SPECS, SPECS["query"])
    parts = 1 if how == "one device" else len(devices(generation))
    # Queries may be laid out anew, but not one layer of the keys or of the values.
    assert out.memory_analysis().temp_size_in_bytes < cache_bytes(arrays, parts) // 4


@pytest.mark.parametrize("generation", ["v5e", "v4"])
@pytest.mark.parametrize("kind", ["block-causal", "two copies", "paged", "odd"])
def test_other_forms_compile(generation, kind):
    sizes = {"paged": cases.PAGED, "odd": cases.ODD}.get(kind, cases.CANVAS)
    rule = {
        "block-causal": rules.block_causal(32),
        "two copies": rules.two_copies(sizes.rows // 2, 32),
    }.get(kind)
    canvas = rule and rules.canvas(rule, sizes.rows, row_tile=sizes.row_tile)
    call = attention(sizes, canvas, paged=kind == "paged")
    compiled(generation, "one device", call, cases.arrays(sizes), SPECS, SPECS["query"])


def commit(cached_key, cached_value, new_key, new_value, path, start, num):
    args = cached_key, cached_value, new_key, new_value, path, start, num
    return commit_api.commit(*args, impl="tpu")


@pytest.mark.parametrize("how", ["one device", "shard_map"])
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize(
    "name",
    [
        "rows64-dim128-bfloat16",
        *[
            pytest.param(name, marks=pytest.mark.slow)
            for name in cases.COMPILE
            if name != "rows64-dim128-bfloat16"
        ],
    ],
)
def test_commit_compiles_in_place(generation, name, how):
    arrays = cases.commit_arrays(cases.COMPILE[name])
    cached, rows = P(None, "data", "model"), P("data")
    specs = dict.fromkeys(arrays, cached) | dict.fromkeys(("path", "start", "num"), rows)
    out = compiled(generation, how, commit, arrays, specs, (cached, cached), donate=(0, 1))
    memory = out.memory_analysis()
    parts = 1 if how == "one device" else len(devices(generation))
    assert memory.alias_size_in_bytes == cache_bytes(arrays, parts)
    assert memory.temp_size_in_bytes < room(arrays, parts)


def room(arrays, parts=1):
    """Temporary bytes for the new rows laid out anew, keys and values twice each.

    Keys of few rows fill whole lanes there.
    """
    new = arrays["new_key"]
    lanes = -(-new.shape[-1] // 128) * 128
    return 4 * new.size // new.shape[-1] * lanes * new.dtype.itemsize // parts + 2**20


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_copy_of_the_cache_would_be_noticed(generation):
    arrays = cases.commit_arrays(cases.COMPILE["rows64-dim128-bfloat16"])

    def twin(cached_key, cached_value, *rest):
        # What is read after the write has to be kept somewhere else.
        key, value = commit(cached_key, cached_value, *rest)
        return key + cached_key, value + cached_value

    out = compiled(generation, "one device", twin, arrays, {}, (), donate=(0, 1))
    assert out.memory_analysis().temp_size_in_bytes > room(arrays)


def test_the_matrix_can_fail():
    """Heads beyond vector memory are what the compiler refuses, and `supports` before it."""
    sizes = cases.COMPILE["rows256-dim128-float32"]
    assert blocks.vmem_bytes(sizes, heads=8) > 16 * 2**20

    def call(query, new_key, new_value, cached_key, cached_value, lengths, table, words, layer):
        del table
        work = worklist.plan(lengths, num_rows=sizes.rows, page=sizes.page, page_block=512)
        arrays = query, new_key, new_value, cached_key, cached_value, work, words
        return api.tree_attention(*arrays, layer=layer, impl="tpu", blocks={"heads": 8})

    with pytest.raises(jax.errors.JaxRuntimeError, match="vmem"):
        compiled("v5e", "one device", call, cases.arrays(sizes), SPECS, SPECS["query"])


@pytest.mark.parametrize("generation", GENERATIONS)
def test_tuned_sizes_are_named_as_the_devices_are(generation):
    kind = devices(generation)[0].device_kind
    assert kind in blocks.device_kinds()
