"""Products and lookups whose best form depends on the hardware; attention has its own module.

Products accumulate in float32 whatever the weights are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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


def linear(x: Float[Array, "*B I"], kernel: Float[Array, "I *O"]) -> Float[Array, "..."]:
    """`x @ kernel` in float32 accumulation, returned in float32.

    XLA:CPU has no fast matrix-vector product for 16-bit weights: one row takes several times as
    long as two, so a lone row is doubled there.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(kernel.dtype)
    if rows.shape[0] == 1 and kernel.dtype.itemsize < 4:
        out = jax.lax.platform_dependent(rows, kernel, cpu=_two_rows, default=_product)
    else:
        out = _product(rows, kernel)
    return out.reshape(*x.shape[:-1], *kernel.shape[1:])


def linear_transposed(x: Float[Array, "*B I"], kernel: Float[Array, "O I"]) -> Float[Array, "*B O"]:
    """`x @ kernel.T` without materialising the transpose (the tied output head)."""
    rows = x.reshape(-1, x.shape[-1]).astype(kernel.dtype)
    if rows.shape[0] == 1 and kernel.dtype.itemsize < 4:
        out = jax.lax.platform_dependent(
            rows, kernel, cpu=_two_rows_transposed, default=_product_transposed
        )
    else:
        out = _product_transposed(rows, kernel)
    return out.reshape(*x.shape[:-1], kernel.shape[0])


def _product(x: Float[Array, "T I"], kernel: Float[Array, "I *O"]) -> Float[Array, "T *O"]:
    # The feature axes stay apart: merged, a kernel split over the last one would be gathered.
    contract = (((1,), (0,)), ((), ()))
    return jax.lax.dot_general(x, kernel, contract, preferred_element_type=jnp.float32)


def _two_rows(x: Float[Array, "1 I"], kernel: Float[Array, "I *O"]) -> Float[Array, "1 *O"]:
    return _product(jnp.concatenate([x, x]), kernel)[:1]


def _product_transposed(x: Float[Array, "T I"], kernel: Float[Array, "O I"]) -> Float[Array, "T O"]:
    contract = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(kernel, x, contract, preferred_element_type=jnp.float32).T


def _two_rows_transposed(
    x: Float[Array, "1 I"], kernel: Float[Array, "O I"]
) -> Float[Array, "1 O"]:
    return _product_transposed(jnp.concatenate([x, x]), kernel)[:1]
