"""The reference, the api's checks and what it says when it refuses."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import bits, rules, worklist
from pallas_kernels.tree_attention import api
from pallas_kernels.tree_attention.problem import Problem
from tests.kernels import trees

SIZES = Problem(
    batch=3, kv_heads=2, group=2, rows=20, head_dim=16, dtype="float32", page=64, page_block=64,
    layers=2,
)  # fmt: skip


def arguments(call, sizes, *, table=None):
    """The api's arguments for a call."""
    arrays = (call.query, call.new_key, call.new_value, call.cached_key, call.cached_value)
    work = worklist.plan(
        jnp.asarray(call.lengths),
        num_rows=sizes.rows,
        page=sizes.page,
        page_block=sizes.page_block,
        table=table,
    )
    return [*map(jnp.asarray, arrays), work, bits.pack(jnp.asarray(call.sees))]


@pytest.mark.parametrize("pages", [1, 3])
def test_the_reference_is_softmax_attention(pages):
    sizes = Problem(**{**vars(SIZES), "pages_per_row": pages})
    call = trees.random_call(np.random.default_rng(pages), sizes, paged=pages > 1)
    args = arguments(call, sizes, table=jnp.asarray(call.table))
    out = api.tree_attention(*args, layer=call.layer, impl="xla")
    np.testing.assert_allclose(out, trees.expected(call), atol=2e-6)


def test_a_canvas_without_a_cache():
    canvas = rules.canvas(rules.two_copies(10, 5), 20, row_tile=32)
    sees = np.broadcast_to(canvas.dense(), (3, 20, 20))
    lengths = np.zeros(3, int)
    call = trees.random_call(np.random.default_rng(0), SIZES, sees=sees, lengths=lengths)
    work = worklist.plan(jnp.zeros(3, int), num_rows=20, page=0, page_block=128, canvas=canvas)
    arrays = map(jnp.asarray, (call.query, call.new_key, call.new_value))
    out = api.canvas_attention(*arrays, None, None, work, canvas, impl="xla")
    np.testing.assert_allclose(out, trees.expected(call), atol=2e-6)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (1, lambda x: x.swapaxes(2, 3), r"new_key has shape \(3, 2, 20, 16\)"),
        (4, lambda x: x[:, :, :1], "cached_value has shape"),
        (4, lambda _: None, "both be given"),
        (4, lambda x: x.astype(jnp.bfloat16), "dtypes"),
        (6, lambda x: x[:, :, :7], r"words have shape \(3, 1, 7\)"),
    ],
)
def test_shapes_that_do_not_belong_together(index, change, message):
    call = trees.random_call(np.random.default_rng(0), SIZES)
    args = arguments(call, SIZES)
    args[index] = change(args[index])
    with pytest.raises(ValueError, match=message):
        api.tree_attention(*args, impl="xla")


def test_unknown_implementation():
    call = trees.random_call(np.random.default_rng(0), SIZES)
    with pytest.raises(ValueError, match="'cuda' is not known; use one of auto, tpu, gpu, xla"):
        api.tree_attention(*arguments(call, SIZES), impl="cuda")
