"""Residual blocks of heads: what the input says, and what a product and its nonlinearity add.

A block whose output is narrower than its input keeps a linear image of the input instead of the
input itself. Fresh blocks add nothing, and keep the first entries of what enters.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode.core import ops


def init(width: int, inputs: int | None = None) -> dict[str, Any]:
    """Parameters of a block before training.

    Args:
        width: of the output.
        inputs: width of the input; None for that of the output, which is then kept as it is.
    """
    size = width if inputs is None else inputs
    params: dict[str, Any] = {"kernel": jnp.zeros((size, width)), "bias": jnp.zeros(width)}
    if inputs is not None:
        params["skip"] = {"kernel": jnp.eye(inputs, width), "bias": jnp.zeros(width)}
    return params


def apply(params: Mapping[str, Any], x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """`x + silu(W x + b)`, in float32; x through `skip` where the block has one."""
    kept = linear(params["skip"], x) if "skip" in params else x.astype(jnp.float32)
    return kept + jax.nn.silu(linear(params, x))


def linear(params: Mapping[str, Any], x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """`W x + b` in float32, with a kernel `[in, out]`."""
    return ops.linear(x, params["kernel"]) + params["bias"].astype(jnp.float32)
