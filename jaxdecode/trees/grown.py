"""Rows of a layer down a tree that is drafted level by level: the tree so far, and its mask."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core import masks
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.types import pytree


@pytree
class Grown:
    """Rows of the tree so far.

    Attributes:
        tokens: their tokens.
        features: the states they go on from.
        level: levels below the past, from 0.
        sees: which of them each sees, itself included.
    """

    tokens: Int[Array, "B R"]
    features: Float[Array, "B R D"]
    level: Int[Array, "B R"]
    sees: Bool[Array, "B R R"]


def below(grown: Grown | None, sees: Bool[Array, "B W R"], features: Any, tokens: Any) -> Grown:
    """The rows with those of another level behind them.

    Args:
        grown: rows so far; None for none.
        sees: which of these each new row sees.
        features: the states that the new rows go on from.
        tokens: their tokens.
    """
    batch, width = tokens.shape
    own = jnp.broadcast_to(jnp.eye(width, dtype=bool), (batch, width, width))
    if grown is None:
        level = jnp.zeros_like(tokens)
        return Grown(tokens=tokens, features=features, level=level, sees=own)
    above = jnp.pad(grown.sees, ((0, 0), (0, 0), (0, width)))
    level = jnp.full_like(tokens, grown.level.max() + 1)
    joined = [grown.features, features.astype(grown.features.dtype)]
    return Grown(
        tokens=jnp.concatenate([grown.tokens, tokens], axis=1),
        features=jnp.concatenate(joined, axis=1),
        level=jnp.concatenate([grown.level, level], axis=1),
        sees=jnp.concatenate([above, jnp.concatenate([sees, own], axis=2)], axis=1),
    )


def program(grown: Grown, num_rows: Int[Array, "B"]) -> MaskProgram:
    """Who sees whom behind a past of `num_rows` rows."""
    return MaskProgram(
        cached=num_rows,
        positions=num_rows[:, None] + grown.level,
        num_new=jnp.full_like(num_rows, grown.tokens.shape[1]),
        ancestors=masks.pack_ancestors(grown.sees),
        rule="tree",
    )
