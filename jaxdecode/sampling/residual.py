"""Residual laws: what is left to draw from after drafts were refused. Float32, one row."""

import jax.numpy as jnp
from jaxtyping import Array, Float

# A smaller sum is what rounding leaves of nothing.
NOTHING = 1e-12


def normalise(weights: Float[Array, "V"], otherwise: Float[Array, "V"]) -> Float[Array, "V"]:
    """The positive part of `weights` as a law; `otherwise` where nothing is left.

    By the maths a residual with no mass has probability 0; only rounding leads there.
    """
    weights = jnp.maximum(weights, 0.0)
    total = weights.sum()
    return jnp.where(total > NOTHING, weights / jnp.maximum(total, NOTHING), otherwise)


def accept(target: Float[Array, ""], draft: Float[Array, ""]) -> Float[Array, ""]:
    """min(1, target / draft): the chance to keep a token; 0 for one that cannot be drawn."""
    return jnp.where(draft > 0, jnp.minimum(target / jnp.where(draft > 0, draft, 1.0), 1.0), 0.0)
