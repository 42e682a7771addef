"""The commit moves the accepted rows to their slots, bit for bit, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.commit import api

RACES = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
LAYERS, BATCH, HEADS, WIDTH = 2, 4, 2, 16


def random_commit(rng, *, page, pages, rows, most, dtype=np.float32):
    """Arrays of a commit with an empty, a full and ragged paths, and rows at the very end."""
    slots = page * pages
    num_pages = BATCH * pages + 2
    order = rng.permutation(num_pages) if pages > 1 else np.arange(BATCH)
    num = rng.integers(0, most + 1, BATCH)
    num[:2] = 0, most
    start = rng.integers(0, slots - most + 1, BATCH)
    start[2] = slots - num[2]
    shape = (LAYERS, num_pages if pages > 1 else BATCH, HEADS)
    cache = [rng.standard_normal((*shape, *end)) for end in ((WIDTH, page), (page, WIDTH))]
    shape = (LAYERS, BATCH, HEADS)
    new = [rng.standard_normal((*shape, *end)) for end in ((WIDTH, rows), (rows, WIDTH))]
    path = np.stack([rng.choice(rows, most, replace=False) for _ in range(BATCH)])
    table = order[: BATCH * pages].reshape(BATCH, pages)
    arrays = [jnp.asarray(x, dtype) for x in (*cache, *new)]
    return arrays, [jnp.asarray(x, jnp.int32) for x in (path, start, num, table)]


def expected(arrays, where):
    """One row and slot at a time."""
    key, value, new_key, new_value = map(np.array, arrays)
    path, start, num, table = map(np.asarray, where)
    page = key.shape[4]
    for b in range(len(path)):
        for i in range(num[b]):
            slot = start[b] + i
            into, at = table[b, slot // page], slot % page
            key[:, into, :, :, at] = new_key[:, b, :, :, path[b, i]]
            value[:, into, :, at] = new_value[:, b, :, path[b, i]]
    return key, value


LAYOUTS = {
    "dense": dict(page=384, pages=1, rows=20, most=9),
    "short": dict(page=40, pages=1, rows=32, most=1),
    "paged": dict(page=128, pages=3, rows=40, most=33),
    "long": dict(page=512, pages=1, rows=160, most=150),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("impl", ["xla", "tpu", "tpu with races"])
def test_accepted_rows_lie_in_their_slots(layout, impl):
    arrays, where = random_commit(np.random.default_rng(len(layout)), **LAYOUTS[layout])
    interpret = {"xla": False, "tpu": True}.get(impl, RACES)
    out = api.commit(*arrays, *where[:3], table=where[3], impl=impl[:3], interpret=interpret)
    for got, wanted in zip(out, expected(arrays, where), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_bfloat16_is_exact():
    arrays, where = random_commit(
        np.random.default_rng(3), page=256, pages=1, rows=64, most=8, dtype=jnp.bfloat16
    )
    out = api.commit(*arrays, *where[:3], impl="tpu", interpret=True)
    for got, wanted in zip(out, expected(arrays, where), strict=True):
        np.testing.assert_array_equal(np.asarray(got), wanted)


def test_nothing_to_write_changes_nothing():
    arrays, where = random_commit(np.random.default_rng(3), **LAYOUTS["dense"])
    path, start, num, _ = where
    out = api.commit(*arrays, path, start, 0 * num, impl="tpu", interpret=True)
    for got, before in zip(out, arrays, strict=False):
        np.testing.assert_array_equal(got, before)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_random_commits(seed):
    rng = np.random.default_rng(seed)
    layout = LAYOUTS[list(LAYOUTS)[seed % len(LAYOUTS)]]
    arrays, where = random_commit(rng, **layout)
    out = jax.jit(lambda a, w: api.commit(*a, *w[:3], table=w[3], impl="tpu", interpret=RACES))(
        arrays, where
    )
    for got, wanted in zip(out, expected(arrays, where), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(impl="gpu"), ValueError, "'gpu' is not known; use one of auto, tpu, xla"),
        (dict(num=jnp.zeros(3, int)), ValueError, r"num has shape \(3,\)"),
        (dict(new_key=jnp.zeros((2, 4, 2, 16, 20), jnp.int8)), ValueError, "dtypes"),
    ],
)
def test_bad_arguments_say_what_is_wrong(change, error, message):
    arrays, where = random_commit(np.random.default_rng(0), **LAYOUTS["dense"])
    names = ["cached_key", "cached_value", "new_key", "new_value", "path", "start", "num"]
    args = dict(zip(names, [*arrays, *where], strict=False)) | {"impl": "xla"} | change
    with pytest.raises(error, match=message):
        api.commit(**args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dtype="int8"), "dtype int8"),
        (dict(head_dim=20), "multiple of 8"),
        (dict(rows=100_000), "do not fit"),
        (dict(page=200), "not whole tiles"),
        ({}, None),
    ],
)
def test_what_the_kernel_refuses(change, message):
    sizes = dict(head_dim=128, rows=64, page=512, dtype="bfloat16") | change
    reason = api.supports(**sizes)
    assert (message is None) == (reason is None)
    assert message is None or message in reason
