"""Block sizes: data per device kind, and the vector memory they need."""

import dataclasses
import functools
import json
from importlib import resources

from pallas_kernels.tree_attention.problem import Problem

_LANES = 128
# Rows worked on at once: more do not help the schedule, and make long programs.
_ROWS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """What a device kind asks of block sizes; `tuned/tpu.json` lists them.

    Attributes:
        vmem_bytes: budget of a kernel in vector memory, below the compiler's default limit.
        step_bytes: keys and values a grid step should move, so that its overhead is small.
        cores: cores that share the grid's parallel axis.
    """

    vmem_bytes: int
    step_bytes: int
    cores: int


@functools.cache
def _devices() -> dict[str, Device]:
    data = resources.files("pallas_kernels.tree_attention") / "tuned" / "tpu.json"
    text = data.read_text(encoding="utf-8")
    return {kind: Device(**sizes) for kind, sizes in json.loads(text).items()}


def device_kinds() -> list[str]:
    """Device kinds with tuned sizes."""
    return [kind for kind in _devices() if kind != "default"]


def of(device_kind: str | None) -> Device:
    """The data of a device kind; the smallest budget where it is not listed or not known."""
    devices = _devices()
    return devices.get(device_kind or "default", devices["default"])


def page_block(page: int, kv_heads: int, head_dim: int, itemsize: int, device_kind=None) -> int:
    """Slots of a block of the cache: a step of all heads moves about `step_bytes`.

    Args:
        page: slots of a page; of the whole row in a dense cache.
        kv_heads: KV heads per device.
        head_dim: width of a head.
        itemsize: bytes of a cached number.
        device_kind: as `jax.Device.device_kind`; None if unknown.

    Returns:
        A multiple of 128 that divides the page, between 128 and 2048, or the page itself where
        none does.
    """
    wanted = of(device_kind).step_bytes // (2 * kv_heads * head_dim * itemsize)
    fits = [n for n in (2048, 1024, 512, 256, 128) if n <= page and page % n == 0]
    if not fits:
        return page if page < _LANES else _LANES * min(4, -(-page // _LANES))
    return next((n for n in reversed(fits) if n >= wanted), fits[0])


def heads(sizes: Problem, blocks: dict[str, int] | None, device_kind: str | None = None) -> int:
    """KV heads of a grid step: as few as move `step_bytes`, and fit vector memory.

    Raises:
        ValueError: `blocks` names something else than `heads`, or heads that do not divide.
    """
    if blocks is not None:
        if set(blocks) != {"heads"} or blocks["heads"] <= 0 or sizes.kv_heads % blocks["heads"]:
            raise ValueError(
                f"blocks={blocks} must be {{'heads': n}} with n a divisor of the "
                f"{sizes.kv_heads} KV heads."
            )
        return blocks["heads"]
    data = of(device_kind)
    most = max(1, sizes.kv_heads // data.cores)
    divisors = [n for n in range(1, most + 1) if sizes.kv_heads % n == 0]
    fits = [n for n in divisors if vmem_bytes(sizes, heads=n) <= data.vmem_bytes] or [1]
    step = 2 * sizes.page_block * sizes.head_dim * sizes.itemsize
    return next((n for n in fits if n * step >= data.step_bytes), fits[-1])


def group_part(sizes: Problem) -> int:
    """Query heads of a KV head worked on at once: as many as make up to 256 rows."""
    divisors = [n for n in range(1, sizes.group + 1) if sizes.group % n == 0]
    return max(n for n in divisors if n == 1 or n * sizes.row_tile <= _ROWS)


def vmem_bytes(sizes: Problem, *, heads: int) -> int:
    """Vector memory of a grid step: blocks twice (one is being copied), scratch, score tiles."""
    rows, tile = sizes.group * sizes.row_tile, sizes.row_tile
    width = -(-sizes.head_dim // _LANES) * _LANES
    query_and_out = rows * width * (sizes.itemsize + 4)
    cached = sizes.page_block * (sizes.head_dim + width) * sizes.itemsize
    new = max(tile, _LANES) * (sizes.head_dim + width) * sizes.itemsize
    scratch = rows * (2 * _LANES + width) * 4
    part = group_part(sizes) * tile
    scores = part * max(sizes.page_block, tile) * (4 + 4 + sizes.itemsize)
    return heads * (2 * (query_and_out + cached + new) + scratch) + scores + tile * tile // 4
