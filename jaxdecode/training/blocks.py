"""Texts with blocks laid out for training: what a block drafter sees at many places, in one pass.

Behind the T context rows of a text stand blocks of b rows, one for each of P of its places. A
block sees the context rows of its text before its place, and its own rows in both directions.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core import masks, ops
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.types import pytree
from jaxdecode.training import probed
from jaxdecode.training.objective import Batch, ahead


@pytree
class Laid:
    """Blocks, and what their rows should say.

    Attributes:
        program: who sees whom, of the context rows and the blocks' rows.
        places: the token that each block begins with.
        wanted: the tokens behind it.
        weight: their weights; 0 where the text has none.
    """

    program: MaskProgram
    places: Int[Array, "B P"]
    wanted: Int[Array, "B P b"]
    weight: Float[Array, "B P b"]


def lay(batch: Batch, key: Array, *, block: int, num_places: int | None) -> Laid:
    """Blocks of the batch.

    Args:
        batch: texts.
        key: PRNG key of the places.
        block: rows of a block, that of its first token included.
        num_places: P, blocks of a row; None puts one at every place.
    """
    num_rows = batch.tokens.shape[0]
    ahead_of = [ahead(batch, j + 1) for j in range(block - 1)]
    wanted, weight = (jnp.stack(arrays, -1) for arrays in zip(*ahead_of, strict=True))
    places = probed.choose(weight[..., 0], key, num_places)

    where = ops.taken(batch.positions, places)[..., None] + jnp.arange(block, dtype=jnp.int32)
    positions = jnp.concatenate([batch.positions, where.reshape(num_rows, -1)], axis=1)
    return Laid(
        program=MaskProgram(
            cached=jnp.zeros(num_rows, jnp.int32),
            positions=positions.astype(jnp.int32),
            num_new=jnp.full(num_rows, positions.shape[1], jnp.int32),
            ancestors=masks.pack_ancestors(sees(batch.segments, places, block)),
            rule="tree",
        ),
        places=places,
        wanted=ops.taken(wanted, places),
        weight=ops.taken(weight, places),
    )


def sees(
    segments: Int[Array, "B T"], places: Int[Array, "B P"], block: int
) -> Bool[Array, "B R R"]:
    """Which rows each row sees; context rows, which nobody reads, only themselves."""
    size = segments.shape[1]
    slot = jnp.arange(size, dtype=jnp.int32)

    def row(segments, places):
        group = jnp.repeat(jnp.arange(len(places)), block)
        place = places[group]
        context = (slot < place[:, None]) & (segments == segments[place][:, None])
        below = jnp.concatenate([context, group[:, None] == group], axis=1)
        above = jnp.eye(size, size + len(group), dtype=bool)
        return jnp.concatenate([above, below])

    return jax.vmap(row)(segments, places)
