"""Analytic floors: what a step must read, compute and send at least, and how long that takes."""

import dataclasses
from typing import Literal

import jax

from jaxdecode.dist import rules
from jaxdecode.models.config import ModelConfig
from jaxdecode.plan.hardware import Chip
from jaxdecode.plan.setup import Setup, params, shard_bytes

Bound = Literal["HBM", "MXU", "ICI"]


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step moves and computes, per device.

    Attributes:
        hbm_bytes: read from and written to memory.
        flops: of products.
        wire_bytes: sent to other devices.
    """

    hbm_bytes: float
    flops: float
    wire_bytes: float

    def seconds(self, chip: Chip) -> dict[Bound, float]:
        """Time each resource needs at its peak; nothing is faster than the longest of them.

        The latency of collectives is left out.
        """
        return {
            "HBM": self.hbm_bytes / (chip.hbm_gbps * 1e9),
            "MXU": self.flops / (chip.bf16_tflops * 1e12),
            "ICI": self.wire_bytes / (chip.link_gbps * 1e9),
        }

    def bound(self, chip: Chip) -> tuple[Bound, float]:
        """The resource that binds, and its time in seconds: the roofline."""
        times = self.seconds(chip)
        name = max(times, key=lambda resource: times[resource])
        return name, times[name]


def floor(made: Setup, num_nodes: int) -> Work:
    """The least that scoring `num_nodes` new rows of every batch row over a full context takes.

    Every weight and every visible key and value is read once, and two all-reduces per layer carry
    the residual stream (one more the embedding); everything else stays on chip.
    """
    return _work(made, num_nodes, num_scored=num_nodes, seen=made.context, moved=kv_bytes(made))


def window_floor(made: Setup, num_rows: int, *, num_scored: int, cached: int, written: int) -> Work:
    """The least that a window takes: of `num_rows` that go in, so many are scored.

    Args:
        made: the model and the batch.
        num_rows: slots of a row that go in.
        num_scored: slots that the head scores.
        cached: slots whose keys and values are read.
        written: slots whose keys and values are kept.
    """
    slot = kv_bytes(made) / visible_slots(made.config, made.context)
    layers = made.config.num_layers
    moved = slot * (visible_slots(made.config, cached) + layers * written)
    return _work(made, num_rows, num_scored=num_scored, seen=cached + num_rows, moved=moved)


def _work(made: Setup, num_rows: int, *, num_scored: int, seen: int, moved: float) -> Work:
    config, data = made.config, made.mesh.shape[rules.RULES["rows"]]
    parts = made.mesh.shape[rules.RULES["kv_heads"]]
    rows, scored = (made.batch // data * number for number in (num_rows, num_scored))
    tree = params(made)
    embedding = shard_bytes(tree["embed"])
    stream = rows * config.hidden_size * made.dtype.itemsize
    read = shard_bytes(tree) - (0 if config.tied_embeddings else embedding)
    head = config.vocab_size * config.hidden_size // parts
    weights = sum(_matrix_sizes(tree, tied=config.tied_embeddings)) - head
    heads = config.num_heads // parts
    visible = visible_slots(config, seen)
    return Work(
        # The rows' embeddings are as wide as their stream.
        hbm_bytes=read + stream + moved,
        flops=2.0 * (weights * rows + head * scored)
        + 4.0 * rows * heads * config.head_dim * visible,
        wire_bytes=2.0 * (parts - 1) / parts * (2 * config.num_layers + 1) * stream,
    )


def kv_bytes(made: Setup) -> int:
    """Bytes of keys and values that one step over a full context reads, per device."""
    config = made.config
    rows = made.batch // made.mesh.shape[rules.RULES["rows"]]
    heads = config.num_kv_heads // made.mesh.shape[rules.RULES["kv_heads"]]
    row = 2 * heads * config.head_dim * made.kv_dtype.itemsize
    return rows * row * visible_slots(config, made.context)


def visible_slots(config: ModelConfig, context: int) -> int:
    """Slots that one query sees, all layers together."""
    return sum(min(context, window or context) for window in config.layer_windows)


def _matrix_sizes(tree: dict, *, tied: bool) -> list[int]:
    """Elements per device of every kernel that rows are multiplied with."""
    own = {key: part for key, part in tree.items() if key != "embed" or tied}
    leaves = jax.tree_util.tree_leaves_with_path(own)
    return [
        shard_bytes(leaf) // leaf.dtype.itemsize
        for path, leaf in leaves
        if getattr(path[-1], "key", "") in ("kernel", "embedding")
    ]
