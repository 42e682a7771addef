"""The GPU kernel, interpreted on the CPU: numbers against float64, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import rules, worklist
from pallas_kernels.tree_attention import api, gpu
from pallas_kernels.tree_attention.problem import Problem
from tests.kernels import trees
from tests.kernels.test_reference import arguments

SIZES = Problem(
    batch=3, kv_heads=2, group=2, rows=32, head_dim=64, dtype="float32", page=208, page_block=128,
    layers=2,
)  # fmt: skip
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
# A row of a small test is split too, into shares of one step.
SMALL_SHARES = {"least_share": 32}


def rounded(call, dtype):
    """The call with numbers that the dtype holds."""
    arrays = ("query", "new_key", "new_value", "cached_key", "cached_value")
    to = {name: np.asarray(jnp.asarray(getattr(call, name), dtype), np.float32) for name in arrays}
    return dataclasses.replace(call, **to)


def largest_error(call, sizes, *, given=None, paged=False, **options):
    """Of the interpreted kernel, given the call or another one, against float64."""
    call = rounded(call, sizes.dtype)
    table = jnp.asarray(call.table) if paged else None
    arrays = arguments(given or call, sizes, table=table)
    arrays[:5] = [x.astype(sizes.dtype) for x in arrays[:5]]

    @jax.jit
    def attend(arrays, layer):
        return api.tree_attention(*arrays, layer=layer, impl="gpu", interpret=True, **options)

    out = np.asarray(attend(arrays, call.layer), np.float64)
    assert out.shape == call.query.shape
    return np.abs(out - trees.expected(call)).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("blocks", [None, SMALL_SHARES], ids=["one share", "shares"])
@pytest.mark.parametrize(
    ("change", "paged"),
    [
        ({}, False),
        ({"rows": 1, "group": 3}, False),
        ({"rows": 70, "head_dim": 128}, False),
        ({"page": 128, "pages_per_row": 3}, True),
        ({"page": 16, "page_block": 16, "pages_per_row": 9, "rows": 8}, True),
    ],
)
def test_numbers(dtype, blocks, change, paged):
    sizes = dataclasses.replace(SIZES, row_tile=0, dtype=dtype, **change)
    call = trees.random_call(np.random.default_rng(0), sizes, paged=paged)
    assert largest_error(call, sizes, paged=paged, blocks=blocks) <= TOLERANCE[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", range(8))
def test_numbers_on_many_trees(dtype, seed):
    """512 trees; lengths 0, full and anything between."""
    rng = np.random.default_rng(seed)
    rows, paged = (32, 48, 64, 96)[seed % 4], seed >= 4
    pages = {"page": 128, "pages_per_row": 2} if paged else {}
    sizes = dataclasses.replace(
        SIZES, batch=32, kv_heads=1, rows=rows, row_tile=0, dtype=dtype, **pages
    )
    call = trees.random_call(rng, sizes, paged=paged)
    assert largest_error(call, sizes, paged=paged, blocks=SMALL_SHARES) <= TOLERANCE[dtype]


def test_a_slot_too_many_would_be_noticed():
    call = trees.random_call(np.random.default_rng(0), SIZES)
    assert largest_error(call, SIZES) <= TOLERANCE["float32"]
    longer = dataclasses.replace(call, lengths=call.lengths + 1)
    assert not largest_error(call, SIZES, given=longer) <= TOLERANCE["float32"]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    "rule",
    [rules.causal, rules.block_causal(16), rules.two_copies(40, 8)],
    ids=["causal", "block_causal", "two_copies"],
)
def test_canvases(cached, rule):
    canvas = rules.canvas(rule, 80, row_tile=32)
    sizes = dataclasses.replace(SIZES, rows=80, row_tile=32, page=208 if cached else 16)
    sees = np.broadcast_to(canvas.dense(), (3, 80, 80))
    lengths = None if cached else np.zeros(3, int)
    call = trees.random_call(np.random.default_rng(1), sizes, sees=sees, lengths=lengths)
    work = worklist.plan(
        jnp.asarray(call.lengths),
        num_rows=80,
        page=208 if cached else 0,
        page_block=128,
        canvas=canvas,
    )
    caches = (call.cached_key, call.cached_value) if cached else (None, None)
    arrays = (call.query, call.new_key, call.new_value, *caches)
    out = api.canvas_attention(
        *(None if x is None else jnp.asarray(x) for x in arrays),
        work,
        canvas,
        layer=call.layer if cached else 0,
        impl="gpu",
        interpret=True,
    )
    np.testing.assert_allclose(out, trees.expected(call), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int8"}, "keys of dtype int8"),
        ({"head_dim": 96}, "head_dim=96"),
        ({"head_dim": 256}, "registers spill"),
        ({"page": 100}, "a page of 100 slots"),
        ({"window": 64}, "window=64"),
        ({}, None),
        ({"page": 0}, None),
        ({"head_dim": 256, "dtype": "bfloat16"}, None),
    ],
)
def test_refusals_say_why(change, message):
    reason = api.supports("gpu", dataclasses.replace(SIZES, **change))
    assert reason is None if message is None else message in (reason or "")


def test_blocks_are_chosen_by_device_and_replaced_by_name():
    sizes = dataclasses.replace(SIZES, dtype="bfloat16", head_dim=128)
    assert gpu.blocks_for(sizes, "NVIDIA H100 80GB HBM3").rows == 128
    assert gpu.blocks_for(sizes, "NVIDIA A100-SXM4-80GB") == gpu.blocks_for(sizes)
    call = trees.random_call(np.random.default_rng(0), SIZES)
    with pytest.raises(ValueError, match="'heads' is none of rows, columns"):
        largest_error(call, SIZES, blocks={"heads": 2})
