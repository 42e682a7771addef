"""Products and lookups whose best form depends on the hardware; attention has its own module.

Products accumulate in float32 whatever the weights are; `dtype` is what they are rounded to. The
gradient of a product with 16-bit weights is rounded to their format before it is multiplied again,
as accelerators do it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
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
    return _by_rows(_times, dtype, x, kernel).reshape(*x.shape[:-1], *kernel.shape[1:])


def linear_transposed(
    x: Float[Array, "*B I"], kernel: Float[Array, "O I"], dtype: Any = jnp.float32
) -> Float[Array, "*B O"]:
    """`x @ kernel.T` without materialising the transpose (the tied output head)."""
    return _by_rows(_times_transposed, dtype, x, kernel).reshape(*x.shape[:-1], kernel.shape[0])


def _times(dtype: Any, rows: Float[Array, "R I"], kernel: Float[Array, "I *O"]) -> Array:
    return _dot(rows, kernel, 1, 0, dtype)


def _times_transposed(dtype: Any, rows: Float[Array, "R I"], kernel: Float[Array, "O I"]) -> Array:
    return _dot(kernel, rows, 1, 1, dtype).T


def _dot(x: Array, y: Array, axis: int, other: int, dtype: Any) -> Array:
    return jax.lax.dot_general(x, y, (((axis,), (other,)), ((), ())), preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(form: Callable[..., Array], dtype: Any, rows: Array, kernel: Array) -> Array:
    return form(dtype, rows, kernel)


def _forward(form, dtype, rows, kernel):
    return form(dtype, rows, kernel), (rows, kernel)


def _backward(form, dtype, kept, given):
    """Gradients of the rows and of the kernel.

    XLA:CPU has fast products of 16-bit numbers only if they are both 16 bits wide, give float32 and
    contract the last axis of the first of them as it lies in memory.
    """
    rows, kernel = kept

    def plain(given, rows, kernel):
        _, backward = jax.vjp(functools.partial(form, dtype), rows, kernel)
        return backward(given.astype(dtype))

    def on_cpu(given, rows, kernel):
        flat = given.reshape(given.shape[0], -1)
        if form is _times:
            back = _dot(flat, kernel.reshape(kernel.shape[0], -1), 1, 1, jnp.float32)
            outer = _dot(by_axes(rows.T), flat, 1, 0, jnp.float32)
        else:
            back = _dot(flat, kernel, 1, 0, jnp.float32)
            outer = _dot(by_axes(flat.T), rows, 1, 0, jnp.float32)
        return back.astype(rows.dtype), outer.reshape(kernel.shape).astype(kernel.dtype)

    rounded = given.astype(kernel.dtype)
    return jax.lax.platform_dependent(rounded, rows, kernel, cpu=on_cpu, default=plain)


_product.defvjp(_forward, _backward)


def by_axes(x: Shaped[Array, "*D"]) -> Shaped[Array, "*D"]:
    """The same array, in memory in the order of its axes: no view of another, no other order.

    Only of what lies on one device: asked of an array that is split, XLA gathers it first.
    """
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def taken(rows: Shaped[Array, "B T *D"], places: Int[Array, "B P"]) -> Shaped[Array, "B P *D"]:
    """What stands at these places of every row."""
    return jax.vmap(lambda row, index: row[index])(rows, places)


def over_places(
    function: Callable[..., Any], size: int, *trees: PyTree[Shaped[Array, "B T ..."]]
) -> PyTree[Shaped[Array, "B T ..."]]:
    """`function` on so many places of every row at a time; what it returns is joined again.

    The backward pass computes what is inside again, so that it is never held for all places at
    once. Rows stay on the devices they are split over. The last piece may end in zeros.
    """
    width = jax.tree.leaves(trees)[0].shape[1]
    inside = jax.checkpoint(lambda pieces: function(*pieces))
    return joined(jax.lax.map(inside, pieces_of(trees, size)), width)


def pieces_of(tree: PyTree[Shaped[Array, "B T ..."]], size: int) -> PyTree[Array]:
    """At most `size` places of every row at a time, `[n, B, s, ...]`; the last may end in zeros."""

    def split(array: Array) -> Array:
        batch, width, *rest = array.shape
        steps = -(-width // size)
        each = -(-width // steps)
        pad = [(0, 0), (0, steps * each - width)] + [(0, 0)] * len(rest)
        return jnp.moveaxis(jnp.pad(array, pad).reshape(batch, steps, each, *rest), 1, 0)

    return jax.tree.map(split, tree)


def joined(pieces: PyTree[Array], width: int) -> PyTree[Shaped[Array, "B T ..."]]:
    """The inverse of `pieces_of`."""

    def join(array: Array) -> Array:
        rows = jnp.moveaxis(array, 0, 1)
        return rows.reshape(rows.shape[0], -1, *rows.shape[3:])[:, :width]

    return jax.tree.map(join, pieces)


def _by_rows(form: Callable[..., Array], dtype: Any, x: Array, kernel: Array) -> Array:
    """The product of all rows of x, in the kernel's dtype."""
    rows = x.reshape(-1, x.shape[-1]).astype(kernel.dtype)
    if kernel.dtype.itemsize == 4:
        return form(dtype, rows, kernel)
    if rows.shape[0] > 1:
        return _product(form, dtype, rows, kernel)

    def once(rows: Array, kernel: Array) -> Any:
        return _product(form, dtype, rows, kernel)

    def twice(rows: Array, kernel: Array) -> Array:
        return once(jnp.concatenate([rows, rows]), kernel)[:1]

    return jax.lax.platform_dependent(rows, kernel, cpu=twice, default=once)
