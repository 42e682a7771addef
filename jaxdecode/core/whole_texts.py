"""Causal attention of whole texts on TPU by the kernel that JAX has for it, with its gradient.

XLA writes the scores of a text to memory, in places for lack of a form that it would not; here they
stay on the chip, and are computed again for the gradient. Tiles that causality hides cost nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jaxtyping import Array, Float, Int

# Sides of a tile of scores, best first. Longer tiles of queries read keys less often.
_TILES = (1024, 512, 256, 128)
# Most keys of a tile.
_KEYS = 512


def tile_of(length: int) -> int | None:
    """Side of the tiles for texts of this length; None if the kernel has none for it."""
    return next((tile for tile in _TILES if length % tile == 0), None)


def attention(
    query: Float[Array, "B K G T d"],
    key: Float[Array, "B K d T"],
    value: Float[Array, "B K T d"],
    segments: Int[Array, "B T"] | None,
    *,
    interpret: bool = False,
) -> Float[Array, "B K G T d"]:
    """Softmax attention of every row to itself and to the earlier rows of its text.

    Args:
        query: already scaled; T is a multiple of 128.
        key: keys, transposed.
        value: values.
        segments: which of several packed texts each row belongs to; None where a row of the
            batch is one text.
        interpret: run the kernel in an interpreter on the CPU; for tests.
    """
    batch, kv_heads, group, length, width = query.shape
    heads, tile = kv_heads * group, tile_of(length)
    assert tile is not None
    keys = min(tile, _KEYS)
    sizes = splash.BlockSizes(
        block_q=tile,
        block_kv=keys,
        block_q_dkv=keys,
        block_kv_dkv=keys,
        block_kv_dkv_compute=keys,
        block_q_dq=tile,
        block_kv_dq=keys,
        # Keys lie as the products around the kernel have them.
        k_layout=kernel.QKVLayout.SEQ_MINOR,
    )
    causal = splash.CausalMask((length, length))
    run = splash.make_splash_mha(
        splash.MultiHeadMask([causal] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    same = None if segments is None else splash.SegmentIds(segments, segments)
    flat = query.reshape(batch, heads, length, width).astype(key.dtype)
    mixed: Any = jax.vmap(run)(flat, jnp.swapaxes(key, 2, 3), value, same)
    return mixed.reshape(query.shape).astype(query.dtype)
