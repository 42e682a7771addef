"""Times of tree attention on the accelerator of this machine, kernel or plain XLA.

The shapes are those of a step of Llama 3 8B: with one KV head that of one device of eight, with
eight KV heads that of a lone one.
"""

import statistics
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from pallas_kernels import bits, worklist
from pallas_kernels.tree_attention import api, blocks
from pallas_kernels.tree_attention.problem import Problem

# Attentions per timed call: starting a program costs nothing then.
CHAIN = 16


def problems(
    kv_heads: tuple[int, ...], nodes: tuple[int, ...], slots: tuple[int, ...], batch: int
) -> Iterator[Problem]:
    """The sizes that are timed, from few nodes to many."""
    kind = jax.devices()[0].device_kind
    for heads in kv_heads:
        for page in slots:
            block = blocks.page_block(page, heads, 128, 2, kind)
            for rows in nodes:
                yield Problem(
                    batch=batch,
                    kv_heads=heads,
                    group=4,
                    rows=rows,
                    head_dim=128,
                    dtype="bfloat16",
                    page=page,
                    page_block=block,
                    layers=2,
                )


def seconds(sizes: Problem, impl: api.Impl, repeats: int) -> float:
    """Median time of one attention over full rows, in seconds."""
    keys = iter(jax.random.split(jax.random.key(0), 5))
    row, width = (sizes.batch, sizes.kv_heads), sizes.head_dim
    pages = (sizes.layers, sizes.batch, sizes.kv_heads)

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape, sizes.dtype)

    query = normal(*row, sizes.group, sizes.rows, width) * width**-0.5
    new = normal(*row, width, sizes.rows), normal(*row, sizes.rows, width)
    cached = normal(*pages, width, sizes.page), normal(*pages, sizes.page, width)
    chain = jnp.tril(jnp.ones((sizes.batch, sizes.rows, sizes.rows), bool))
    words, lengths = bits.pack(chain), jnp.full(sizes.batch, sizes.page)

    @jax.jit
    def run(query, new, cached, words, lengths):
        work = worklist.plan(
            lengths, num_rows=sizes.rows, page=sizes.page, page_block=sizes.page_block
        )

        def again(step, query):
            layer = step % sizes.layers
            out = api.tree_attention(
                query, *new, *cached, work=work, words=words, layer=layer, impl=impl
            )
            # Each attention waits for the one before it.
            return query + (out * 1e-3).astype(query.dtype)

        return jax.lax.fori_loop(0, CHAIN, again, query)

    args = query, new, cached, words, lengths
    jax.block_until_ready(run(*args))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run(*args))
        times.append((time.perf_counter() - begin) / CHAIN)
    return statistics.median(times)
