"""Least squares over all texts: where a linear map is a better beginning than none."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode.training.objective import Batch

# Inputs [B, T, I], what they should give [B, T, D], and how much each counts [B, T].
Pairs = list[tuple[Float[Array, "B T I"], Float[Array, "B T D"], Float[Array, "B T"]]]


def fit(
    batches: Iterable[Batch], pairs: Callable[[Batch], Pairs], ridge: float
) -> list[tuple[Float[Array, "I D"], Float[Array, "D"]]]:
    """Kernel and bias of the maps with the least squared errors; float32.

    Only sums of products are kept, so the texts may be any number.

    Args:
        batches: all texts.
        pairs: what each of the maps is fitted to.
        ridge: penalty of the kernel's squares beside the sum of squared errors.
    """

    @jax.jit
    def sums(batch):
        found = []
        for x, y, weight in pairs(batch):
            x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
            x = jnp.where(weight[..., None] > 0, x, 0)
            product = [_products(x, other) for other in (x, y.astype(x.dtype))]
            found.append(product)
        return found

    total: Any = None
    for batch in batches:
        own = sums(jax.tree.map(jnp.asarray, batch))
        total = own if total is None else jax.tree.map(jnp.add, total, own)
    return [_solved(square, cross, ridge) for square, cross in total]


def _products(x: Float[Array, "B T I"], y: Float[Array, "B T D"]) -> Float[Array, "I D"]:
    return jnp.einsum("bti,btd->id", x, y, preferred_element_type=jnp.float32)


def _solved(
    square: Float[Array, "J J"], cross: Float[Array, "J D"], ridge: float
) -> tuple[Float[Array, "I D"], Float[Array, "D"]]:
    penalty = jnp.full(len(square), ridge, jnp.float32).at[-1].set(1e-6)
    found = jnp.linalg.solve(square + jnp.diag(penalty), cross)
    return found[:-1], found[-1]
