"""REWARDS: what an answer is worth, by name: plain functions of tokens, from 0 to 1.

Each is `(answer, reference, counts) -> reward`, for one row: the tokens of the answer, those of the
text that is trained on, and which of them belong to the answer. Both go on with the end token once
they have ended. Data chooses none of them and brings no code of its own.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Reward = Callable[..., Float[Array, ""]]


def exact(
    answer: Int[Array, "T"], reference: Int[Array, "T"], counts: Bool[Array, "T"]
) -> Float[Array, ""]:
    """1 for the reference itself."""
    return jnp.where(counts, answer == reference, True).all().astype(jnp.float32)


def share(
    answer: Int[Array, "T"], reference: Int[Array, "T"], counts: Bool[Array, "T"]
) -> Float[Array, ""]:
    """The part of the answer's places at which it has the reference's token."""
    return ((answer == reference) & counts).sum() / jnp.maximum(counts.sum(), 1)


def any_order(
    answer: Int[Array, "T"], reference: Int[Array, "T"], counts: Bool[Array, "T"]
) -> Float[Array, ""]:
    """1 for the tokens of the reference, each as often as there, in any order."""
    a, b = (jnp.sort(jnp.where(counts, tokens, -1)) for tokens in (answer, reference))
    return (a == b).all().astype(jnp.float32)


REWARDS: Mapping[str, Reward] = MappingProxyType(
    {"exact": exact, "share": share, "any_order": any_order}
)
