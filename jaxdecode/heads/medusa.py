"""Medusa heads: head k guesses the token k + 2 places after the state it reads (arXiv:2401.10774).

The state is the target's last hidden state, of which the target's own head reads the next token.
Each head is a residual block or several and an output matrix, its own or the target's; between
these there may be an affine map.
Blocks and maps change nothing at first, so an untrained head says what the target's head says.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.core import ops
from jaxdecode.errors import InputError
from jaxdecode.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        num_heads: tokens that are guessed at once.
        num_layers: residual blocks of a head.
        own_head: each head has an output matrix of its own, V x D, as the published ones have;
            otherwise all read the target's.
        affine: each head maps its state, D x D and a bias, before the target's output matrix.
    """

    num_heads: int = 4
    num_layers: int = 1
    own_head: bool = False
    affine: bool = False

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_heads", self.num_heads, low=1, high=64)
        checks.integer("num_layers", self.num_layers, low=1, high=64)
        if self.affine and self.own_head:
            raise InputError(
                "affine=True says nothing that own_head=True does not; leave one of them out."
            )


class Heads(nn.Module):
    """All that heads do before the output matrix, at once: from one state to one per head."""

    shape: Shape

    @nn.compact
    def __call__(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B H D"]:
        width, num = hidden.shape[-1], self.shape.num_heads
        x = jnp.broadcast_to(hidden[..., None, :], (*hidden.shape[:-1], num, width))
        for i in range(self.shape.num_layers):
            zeros = nn.initializers.zeros
            kernel = self.param(f"blocks.{i}.kernel", zeros, (num, width, width))
            bias = self.param(f"blocks.{i}.bias", zeros, (num, width))
            x = x + nn.silu(_per_head(x, kernel) + bias).astype(x.dtype)
        if self.shape.affine:
            kernel = self.param("affine.kernel", _identities, (num, width, width))
            bias = self.param("affine.bias", nn.initializers.zeros, (num, width))
            x = (_per_head(x, kernel) + bias).astype(x.dtype)
        return x


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training.

    Args:
        shape: sizes.
        config: the target's.
        key: unused: blocks start at zero, affine maps at the identity.
        target: the target's parameters; own output matrices start as copies of its head.
    """
    params: Any = Heads(shape).init(key, jnp.zeros((1, config.hidden_size)))["params"]
    if shape.own_head:
        table = target["embed"]["embedding"] if config.tied_embeddings else target["head"]["kernel"]
        copies = jnp.broadcast_to(table, (shape.num_heads, *table.shape))
        params = params | {"output.kernel": copies.astype(jnp.float32)}
    return params


def logits(
    shape: Shape,
    params: dict[str, Any],
    hidden: Float[Array, "*B D"],
    target_logits: Callable[[Array], Array],
) -> Float[Array, "*B H V"]:
    """float32 scores of every head.

    Args:
        shape: sizes.
        params: of the heads.
        hidden: final hidden states of the target, normalised.
        target_logits: the target's head; read by heads without one.
    """
    blocks = {name: leaf for name, leaf in params.items() if not name.startswith("output.")}
    states: Any = Heads(shape).apply({"params": blocks}, hidden)
    if not shape.own_head:
        return target_logits(states)
    return _per_head(states, jnp.swapaxes(params["output.kernel"], 1, 2))


def _identities(key: Array, shape: tuple[int, int, int]) -> Float[Array, "H D D"]:
    del key
    return jnp.broadcast_to(jnp.eye(shape[-1]), shape)


def _per_head(x: Float[Array, "*B H I"], kernel: Float[Array, "H I O"]) -> Float[Array, "*B H O"]:
    # One by one: XLA:CPU has no product of several 16-bit matrices at once.
    parts = [ops.linear(x[..., k, :], kernel[k]) for k in range(kernel.shape[0])]
    return jnp.stack(parts, axis=-2)
