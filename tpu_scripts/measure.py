"""Times tree attention on the accelerator of this machine: the kernel beside plain XLA.

    python tpu_scripts/measure.py >> docs/measured.md

Prints a table in Markdown with the date, the versions and the device. The shapes are those of a
step of Llama 3 8B on one device of eight (one KV head, four query heads) and on a lone one (eight
KV heads). Times are medians of calls that run the attention many times in a row, so that starting
a program costs nothing; GB/s counts the keys and values that must be read.
"""

import datetime
import functools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import tyro

from pallas_kernels import bits, worklist
from pallas_kernels.tree_attention import api, blocks
from pallas_kernels.tree_attention.problem import Problem

# Attentions per timed call.
CHAIN = 16


def problems(kv_heads: tuple[int, ...], nodes: tuple[int, ...], slots: tuple[int, ...], batch: int):
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
    """Median time of one attention over full rows."""
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
        attend = functools.partial(api.tree_attention, impl=impl)

        def again(step, query):
            out = attend(query, *new, *cached, work, words, layer=step % sizes.layers)
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


def line(sizes: Problem, kernel: api.Impl | None, repeats: int) -> str:
    """One row of the table."""
    plain = seconds(sizes, "xla", repeats)
    cells = [str(sizes.kv_heads), str(sizes.page), str(sizes.rows), f"{plain * 1e6:.0f}"]
    if kernel is None:
        return " | ".join(["", *cells, "-", "-", "-", ""]).strip()
    reason = api.supports(kernel, sizes, jax.devices()[0].device_kind)
    if reason:
        return " | ".join(["", *cells, reason, "-", "-", ""]).strip()
    own = seconds(sizes, kernel, repeats)
    read = 2 * sizes.batch * sizes.kv_heads * sizes.page * sizes.head_dim * sizes.itemsize
    cells += [f"{own * 1e6:.0f}", f"{plain / own:.2f}", f"{read / own / 1e9:.0f}"]
    return " | ".join(["", *cells, ""]).strip()


def main(
    kv_heads: tuple[int, ...] = (1, 8),
    nodes: tuple[int, ...] = (1, 8, 32, 64),
    slots: tuple[int, ...] = (2048, 16384),
    batch: int = 8,
    repeats: int = 20,
) -> None:
    """Prints the table.

    Args:
        kv_heads: KV heads, with four query heads each.
        nodes: rows that are scored at once.
        slots: cached slots of every row.
        batch: rows of the batch.
        repeats: timed calls; the median counts.
    """
    device = jax.devices()[0]
    kernel: api.Impl | None = device.platform if device.platform in ("tpu", "gpu") else None  # type: ignore[assignment]
    print(f"\n## {device.device_kind}, {datetime.date.today()}\n")
    print(f"jax {jax.__version__}, batch {batch}, bfloat16, head_dim 128")
    print(f"`python {' '.join(sys.argv)}`\n")
    print("| KV heads | slots | nodes | XLA, us | kernel, us | XLA / kernel | GB/s of kernel |")
    print("|---|---|---|---|---|---|---|")
    for sizes in problems(kv_heads, nodes, slots, batch):
        print(line(sizes, kernel, repeats), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
