"""The TPU kernel against float64, in both interpreters: no NaN, no race, no wrong number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import bits, rules, worklist
from pallas_kernels.tree_attention import api, cases
from tests.kernels import trees

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
INTERPRETERS = ["plain", "machine"]
# Trees of the slow test: seeds times the rows of a case.
SEEDS = 42


def interpreter(name, seed=0):
    """JAX's own interpreter, or the simulated machine: two cores, races, uninitialised memory."""
    if name == "plain":
        return True
    return pltpu.InterpretParams(
        detect_races=True,
        uninitialized_memory="nan",
        num_cores_or_threads=2,
        random_seed=seed,
    )


def races():
    found = interpret_pallas_call.races
    return found is not None and found.races_found


def kernel(sizes, interpret, canvas=None):
    """The kernel as a jitted function of a call's arrays, `plan` included."""

    @jax.jit
    def run(arrays, lengths, table, sees, layer):
        work = worklist.plan(
            lengths,
            num_rows=sizes.rows,
            page=sizes.page,
            page_block=sizes.page_block,
            table=table,
            canvas=canvas,
        )
        args = {"layer": layer, "impl": "tpu", "interpret": interpret}
        if canvas is not None:
            return api.canvas_attention(*arrays, work, canvas, **args)
        return api.tree_attention(*arrays, work, bits.pack(sees), **args)

    return run


def check(call, run, sizes):
    """Rounds the call to its dtype, runs it, and compares with float64 on the same numbers."""
    names = ["query", "new_key", "new_value", "cached_key", "cached_value"]
    arrays = {name: jnp.asarray(getattr(call, name), sizes.dtype) for name in names}
    rounded = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
    wanted = trees.expected(dataclasses.replace(call, **rounded))
    args = [jnp.asarray(x) for x in (call.lengths, call.table, call.sees, call.layer)]
    out = np.asarray(run(tuple(arrays.values()), *args), np.float64)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=TOLERANCE[sizes.dtype])
    assert not races()


@pytest.mark.parametrize("how", INTERPRETERS)
@pytest.mark.parametrize("name", cases.NUMERICS)
def test_trees(name, how):
    sizes = cases.NUMERICS[name]
    call = trees.random_call(np.random.default_rng(7), sizes, paged=name == "paged")
    check(call, kernel(sizes, interpreter(how)), sizes)


@pytest.mark.slow
@pytest.mark.parametrize("how", INTERPRETERS)
@pytest.mark.parametrize("name", cases.NUMERICS)
def test_random_trees(name, how):
    sizes = cases.NUMERICS[name]
    run = kernel(sizes, interpreter(how, seed=1))
    for seed in range(SEEDS):
        rng = np.random.default_rng([seed, len(name)])
        check(trees.random_call(rng, sizes, paged=name == "paged"), run, sizes)


def test_the_slow_test_sees_five_hundred_trees():
    assert SEEDS * sum(sizes.batch for sizes in cases.NUMERICS.values()) >= 500


def test_races_are_seen():
    """The broken twin: two cores that write one block."""

    def write(out):
        out[...] = jnp.full_like(out, pl.program_id(0))

    run = pl.pallas_call(
        write,
        out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
        grid=(2,),
        out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=interpreter("machine"),
    )
    try:
        run()
        found = races()
    except jax.errors.JaxRuntimeError as error:  # What later versions of JAX do.
        found = "RACE DETECTED" in str(error)
    pltpu.reset_tpu_interpret_mode_state()
    assert found and not races()


@pytest.mark.parametrize("lengths", [[0, 0], [200, 200], [1, 199], [128, 129]])
def test_lengths_at_the_edges(lengths):
    sizes = cases.NUMERICS["chain"]
    call = trees.random_call(np.random.default_rng(0), sizes, lengths=np.array(lengths))
    check(call, kernel(sizes, True), sizes)


RULES = {
    "causal": rules.causal,
    "block-causal": rules.block_causal(24),
    "two copies": rules.two_copies(75, 25),
    "skip-causal": rules.two_copies(75, 25, clean_first=True),
}


@pytest.mark.parametrize(
    ("rule", "how"), [("block-causal", "machine"), *[(rule, "plain") for rule in RULES]]
)
def test_canvases_behind_a_cache(rule, how):
    sizes = dataclasses.replace(cases.NUMERICS["tree"], rows=150, row_tile=64)
    canvas = rules.canvas(RULES[rule], sizes.rows, row_tile=sizes.row_tile)
    sees = np.broadcast_to(canvas.dense(), (sizes.batch, sizes.rows, sizes.rows))
    call = trees.random_call(np.random.default_rng(1), sizes, sees=sees)
    check(call, kernel(sizes, interpreter(how), canvas), sizes)


def test_a_canvas_alone():
    sizes = dataclasses.replace(cases.NUMERICS["tree"], rows=96, row_tile=32)
    canvas = rules.canvas(rules.block_causal(32), 96, row_tile=32)
    sees = np.broadcast_to(canvas.dense(), (sizes.batch, 96, 96))
    lengths = np.zeros(sizes.batch, int)
    call = trees.random_call(np.random.default_rng(1), sizes, sees=sees, lengths=lengths)
    work = worklist.plan(jnp.zeros(3, int), num_rows=96, page=0, page_block=128, canvas=canvas)
    arrays = map(jnp.asarray, (call.query, call.new_key, call.new_value))
    out = api.canvas_attention(*arrays, None, None, work, canvas, impl="tpu", interpret=True)
    np.testing.assert_allclose(out, trees.expected(call), rtol=0, atol=1e-5)


def test_queries_keep_their_dtype():
    sizes = cases.NUMERICS["short"]
    call = trees.random_call(np.random.default_rng(2), sizes)
    work = worklist.plan(jnp.asarray(call.lengths), num_rows=40, page=64, page_block=64)
    names = ["new_key", "new_value", "cached_key", "cached_value"]
    arrays = [jnp.asarray(getattr(call, name), jnp.bfloat16) for name in names]
    words = bits.pack(jnp.asarray(call.sees))
    out = api.tree_attention(
        jnp.asarray(call.query), *arrays, work, words, impl="tpu", interpret=True
    )
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, trees.expected(call), rtol=0, atol=3e-2)


def test_garbage_past_the_length_is_seen_if_the_limit_is_ignored(monkeypatch):
    """The broken twin: without limits the NaN of unused slots must show."""
    sizes = cases.NUMERICS["chain"]
    call = trees.random_call(np.random.default_rng(0), sizes, lengths=np.array([5, 150]))
    monkeypatch.setattr(worklist, "CACHE_LIMIT", worklist.CACHE_FULL)
    with pytest.raises(AssertionError, match="nan|NaN"):
        check(call, kernel(sizes, True), sizes)


def test_a_row_does_not_depend_on_its_batch():
    sizes = cases.NUMERICS["tree"]
    call = trees.random_call(np.random.default_rng(4), sizes)
    together = _run(call, sizes)
    for b in range(sizes.batch):
        alone = dataclasses.replace(
            call,
            query=call.query[b : b + 1],
            new_key=call.new_key[b : b + 1],
            new_value=call.new_value[b : b + 1],
            cached_key=call.cached_key[:, b : b + 1],
            cached_value=call.cached_value[:, b : b + 1],
            sees=call.sees[b : b + 1],
            lengths=call.lengths[b : b + 1],
            table=call.table[:1],
        )
        out = _run(alone, dataclasses.replace(sizes, batch=1))
        np.testing.assert_array_equal(out[0], together[b])


def _run(call, sizes):
    arrays = (call.query, call.new_key, call.new_value, call.cached_key, call.cached_value)
    args = [jnp.asarray(x) for x in (call.lengths, call.table, call.sees, call.layer)]
    return np.asarray(kernel(sizes, True)(tuple(map(jnp.asarray, arrays)), *args))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 64}, "window=64"),
        ({"dtype": "int8"}, "int8"),
        ({"head_dim": 60}, "multiple of 8"),
        ({"batch": 8000}, "scalar memory"),
        ({"rows": 2048, "row_tile": 2048}, "vector memory"),
        ({}, None),
    ],
)
def test_what_the_kernel_refuses(change, message):
    sizes = dataclasses.replace(cases.SCHEDULE, **change)
    reason = api.supports("tpu", sizes, "TPU v4")
    assert (message is None) == (reason is None)
    assert message is None or message in reason


def test_a_refused_call_says_why():
    sizes = dataclasses.replace(cases.NUMERICS["chain"], head_dim=60)
    call = trees.random_call(np.random.default_rng(0), sizes)
    with pytest.raises(NotImplementedError, match="head_dim=60 is not a multiple of 8"):
        _run(call, sizes)


@pytest.mark.parametrize("blocks", [{"heads": 3}, {"heads": 0}, {"rows": 1}])
def test_blocks_that_do_not_fit(blocks):
    from pallas_kernels.tree_attention import blocks as tuned

    with pytest.raises(ValueError, match="divisor of the 8 KV heads"):
        tuned.heads(cases.SCHEDULE, blocks)
