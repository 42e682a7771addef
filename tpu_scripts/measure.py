"""Times tree attention on the accelerator of this machine: the kernel beside plain XLA.

    python tpu_scripts/measure.py >> docs/measured.md

Prints a table in Markdown with the date, the versions and the device. Times are medians; GB/s
counts the keys and values that must be read.
"""

import datetime
import sys

import jax
import tyro

from pallas_kernels.tree_attention import api, timing
from pallas_kernels.tree_attention.problem import Problem


def line(sizes: Problem, kernel: api.Impl | None, repeats: int) -> str:
    """One row of the table."""
    plain = timing.seconds(sizes, "xla", repeats)
    cells = [str(sizes.kv_heads), str(sizes.page), str(sizes.rows), f"{plain * 1e6:.0f}"]
    if kernel is None:
        return " | ".join(["", *cells, "-", "-", "-", ""]).strip()
    reason = api.supports(kernel, sizes, jax.devices()[0].device_kind)
    if reason:
        return " | ".join(["", *cells, reason, "-", "-", ""]).strip()
    own = timing.seconds(sizes, kernel, repeats)
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
    kernels: dict[str, api.Impl] = {"tpu": "tpu", "gpu": "gpu"}
    kernel = kernels.get(device.platform)
    print(f"\n## {device.device_kind}, {datetime.date.today()}\n")
    print(f"jax {jax.__version__}, batch {batch}, bfloat16, head_dim 128")
    print(f"`python {' '.join(sys.argv)}`\n")
    print("| KV heads | slots | nodes | XLA, us | kernel, us | XLA / kernel | GB/s of kernel |")
    print("|---|---|---|---|---|---|---|")
    for sizes in timing.problems(kv_heads, nodes, slots, batch):
        print(line(sizes, kernel, repeats), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
