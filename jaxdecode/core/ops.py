"""Products and lookups whose best form depends on the hardware; attention has its own module.

Products accumulate in float32 whatever the weights are; `dtype` is what they are rounded to.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped


def embed(table: Float[Array, "V D"], tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    """Rows of the embedding table.

    On a CPU, 16-bit rows are gathered as integers: XLA would first widen the whole table to
    float32 there. On a TPU the integers would be a copy of the table.
    """
    if table.dtype.itemsize != 2:
        return table[tokens]
    return jax.lax.platform_dependent(table, tokens, cpu=_rows_as_integers, default=_rows)


def _rows(table: Float[Array, "V D"], tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    return table[tokens]


def _rows_as_integers(table: Float[Array, "V D"], tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    bits = jax.lax.bitcast_convert_type(table, jnp.uint16)[tokens]
    return jax.lax.bitcast_convert_type(bits, table.dtype)


def linear(
    x: Float[Array, "*B I"], kernel: Float[Array, "I *O"], dtype: Any = jnp.float32
) -> Float[Array, "..."]:
    """`x` times the kernel, accumulated in float32 and returned in `dtype`.

    XLA:CPU has no fast matrix-vector product for 16-bit weights: one row takes several times as
    long as two, so a lone row is doubled there.
    """

    # The feature axes stay apart: merged, a kernel split over the last one would be gathered.
    def product(rows, kernel):
        contract = (((1,), (0,)), ((), ()))
        return jax.lax.dot_general(rows, kernel, contract, preferred_element_type=dtype)

    return _by_rows(product, x, kernel).reshape(*x.shape[:-1], *kernel.shape[1:])


def linear_transposed(
    x: Float[Array, "*B I"], kernel: Float[Array, "O I"], dtype: Any = jnp.float32
) -> Float[Array, "*B O"]:
    """`x @ kernel.T` without materialising the transpose (the tied output head)."""

    def product(rows, kernel):
        contract = (((1,), (1,)), ((), ()))
        return jax.lax.dot_general(kernel, rows, contract, preferred_element_type=dtype).T

    return _by_rows(product, x, kernel).reshape(*x.shape[:-1], kernel.shape[0])


def over_places(
    function: Callable[..., Any], size: int, *trees: PyTree[Shaped[Array, "B T ..."]]
) -> PyTree[Shaped[Array, "B T ..."]]:
    """`function` on so many places of every row at a time; what it returns is joined again.

    The backward pass computes what is inside again, so that it is never held for all places at
    once. Rows stay on the devices they are split over. The last piece may end in zeros.
    """
    width = jax.tree.leaves(trees)[0].shape[1]
    size = min(size, width)
    steps = -(-width // size)

    def split(array: Array) -> Array:
        batch, _, *rest = array.shape
        pad = [(0, 0), (0, steps * size - width)] + [(0, 0)] * len(rest)
        return jnp.moveaxis(jnp.pad(array, pad).reshape(batch, steps, size, *rest), 1, 0)

    def join(pieces: Array) -> Array:
        rows = jnp.moveaxis(pieces, 0, 1)
        return rows.reshape(rows.shape[0], -1, *rows.shape[3:])[:, :width]

    inside = jax.checkpoint(lambda pieces: function(*pieces))
    return jax.tree.map(join, jax.lax.map(inside, jax.tree.map(split, trees)))


def _by_rows(product: Callable[[Array, Array], Array], x: Array, kernel: Array) -> Array:
    """The product of all rows of x, in the kernel's dtype."""
    rows = x.reshape(-1, x.shape[-1]).astype(kernel.dtype)
    if rows.shape[0] > 1 or kernel.dtype.itemsize == 4:
        return product(rows, kernel)

    def twice(rows, kernel):
        return product(jnp.concatenate([rows, rows]), kernel)[:1]

    return jax.lax.platform_dependent(rows, kernel, cpu=twice, default=product)
