"""Sizes of attention calls by name: one list for tests, the compile matrix and benchmarks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import bits
from pallas_kernels.tree_attention.problem import Problem

DTYPES = ("bfloat16", "float32")


def _serving(rows: int, head_dim: int, dtype: str) -> Problem:
    return Problem(
        batch=4,
        kv_heads=8,
        group=4,
        rows=rows,
        head_dim=head_dim,
        dtype=dtype,
        page=8192,
        page_block=512,
        layers=2,
    )


# What has to compile for every generation of hardware.
COMPILE = {
    f"rows{rows}-dim{dim}-{dtype}": _serving(rows, dim, dtype)
    for rows in (32, 64, 256)
    for dim in (64, 128)
    for dtype in DTYPES
}

# A canvas of blocks behind a cache, and a cache in pages.
CANVAS = dataclasses.replace(_serving(512, 128, "bfloat16"), row_tile=128, canvas=True)
PAGED = dataclasses.replace(_serving(64, 128, "bfloat16"), page=512, pages_per_row=4)
# Nothing a multiple of anything: rows, query heads, width and slots.
ODD = dataclasses.replace(_serving(20, 96, "bfloat16"), kv_heads=3, group=3, page=1000)

# Small calls for the interpreters: unaligned rows and slots, one and several heads, pages.
NUMERICS = {
    "chain": Problem(
        batch=2, kv_heads=1, group=1, rows=5, head_dim=64, dtype="float32", page=200, page_block=128
    ),
    "tree": Problem(
        batch=3,
        kv_heads=2,
        group=4,
        rows=32,
        head_dim=64,
        dtype="float32",
        page=300,
        page_block=128,
        layers=2,
    ),
    "wide": Problem(
        batch=2,
        kv_heads=2,
        group=2,
        rows=64,
        head_dim=128,
        dtype="bfloat16",
        page=512,
        page_block=256,
        layers=2,
    ),
    "short": Problem(
        batch=2, kv_heads=2, group=1, rows=40, head_dim=32, dtype="float32", page=64, page_block=64
    ),
    "paged": Problem(
        batch=3,
        kv_heads=2,
        group=2,
        rows=33,
        head_dim=64,
        dtype="bfloat16",
        page=256,
        page_block=128,
        pages_per_row=3,
    ),
    "large": Problem(
        batch=1,
        kv_heads=1,
        group=4,
        rows=256,
        head_dim=128,
        dtype="float32",
        page=384,
        page_block=128,
    ),
}

# The verify step whose schedule is held against a baseline: 64 nodes, 512 slots to a block.
SCHEDULE = COMPILE["rows64-dim128-bfloat16"]


def arrays(sizes: Problem, **kwargs: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a call's arrays by name; keyword arguments go to each (a sharding, say)."""
    row = (sizes.batch, sizes.kv_heads)
    pages = (sizes.layers, sizes.batch * sizes.pages_per_row, sizes.kv_heads)
    width, rows, page = sizes.head_dim, sizes.rows, sizes.page
    words = (sizes.batch, bits.padded(rows) // bits.WORD, rows)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "query": ((*row, sizes.group, rows, width), sizes.dtype),
        "new_key": ((*row, width, rows), sizes.dtype),
        "new_value": ((*row, rows, width), sizes.dtype),
        "cached_key": ((*pages, width, page), sizes.dtype),
        "cached_value": ((*pages, page, width), sizes.dtype),
        "lengths": ((sizes.batch,), jnp.int32),
        "table": ((sizes.batch, sizes.pages_per_row), jnp.int32),
        "words": (words, jnp.uint32),
        "layer": ((), jnp.int32),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, **kwargs)
        for name, (shape, dtype) in shapes.items()
    }


def commit_arrays(sizes: Problem, *, path: int = 8) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the arrays that commit paths of this length, by name."""
    call = arrays(sizes)
    new = (call["new_key"], call["new_value"])
    key, value = (jax.ShapeDtypeStruct((sizes.layers, *x.shape), x.dtype) for x in new)
    rows = jax.ShapeDtypeStruct((sizes.batch,), jnp.int32)
    return {
        "cached_key": call["cached_key"],
        "cached_value": call["cached_value"],
        "new_key": key,
        "new_value": value,
        "path": jax.ShapeDtypeStruct((sizes.batch, path), jnp.int32),
        "start": rows,
        "num": rows,
    }
