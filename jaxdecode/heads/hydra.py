"""Hydra heads: head i guesses a token from a state and all tokens behind it (arXiv:2402.05109).

Head i (from 0) reads the target's last hidden state, the embedding of the token that follows it,
and those of the i tokens drafted after that; so its guess depends on what was drafted before. It is
a residual block that takes all of these, further blocks, and an output matrix, its own or the
target's. An untrained head says what the target's head says of the state.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.core import ops
from jaxdecode.models import residual
from jaxdecode.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        num_heads: tokens that are guessed ahead.
        num_layers: residual blocks of a head.
        own_head: each head has an output matrix of its own, V x D, and a bias, as the published
            ones have; otherwise all read the target's.
    """

    num_heads: int = 4
    num_layers: int = 1
    own_head: bool = False

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_heads", self.num_heads, low=1, high=64)
        checks.integer("num_layers", self.num_layers, low=1, high=64)


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training.

    Args:
        shape: sizes.
        config: the target's.
        key: unused: blocks add nothing at first.
        target: the target's parameters; own output matrices start as copies of its head.
    """
    del key
    width, params = config.hidden_size, {}
    for i in range(shape.num_heads):
        blocks = {"block.0": residual.init(width, (i + 2) * width)}
        blocks |= {f"block.{j}": residual.init(width) for j in range(1, shape.num_layers)}
        if shape.own_head:
            tied = config.tied_embeddings
            table = target["embed"]["embedding"] if tied else target["head"]["kernel"]
            bias = jnp.zeros(config.vocab_size)
            blocks["output"] = {"kernel": table.astype(jnp.float32), "bias": bias}
        params[f"head.{i}"] = blocks
    return params


def logits(
    shape: Shape,
    params: dict[str, Any],
    head: int,
    inputs: Float[Array, "*B I"],
    target_logits: Callable[[Array], Array],
) -> Float[Array, "*B V"]:
    """float32 scores of one head.

    Args:
        shape: sizes.
        params: of the heads.
        head: which, from 0.
        inputs: the state, then the embeddings of the head + 1 tokens that follow it, joined.
        target_logits: the target's head; read by heads without one.
    """
    own, x = params[f"head.{head}"], inputs
    for j in range(shape.num_layers):
        x = residual.apply(own[f"block.{j}"], x)
    if not shape.own_head:
        return target_logits(x)
    output = own["output"]
    return ops.linear_transposed(x, output["kernel"]) + output["bias"].astype(jnp.float32)
