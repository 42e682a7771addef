"""Cross-entropy over a part of the vocabulary: the tokens of a step, and others that are drawn.

The scores of a large vocabulary are most of what a step of small heads computes. Here the tokens
of the batch are scored, which holds all that is to be guessed, and of the others as many as fill
the part; each of these stands for its share of them, so that the mean of the normaliser is that of
the whole vocabulary (importance sampling: Bengio and Senecal, 2008). Heads are never told apart
from tokens that are not there, so `num_classes` trades steps per second for noise.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode.core.types import pytree
from jaxdecode.errors import InputError
from jaxdecode.models.config import ModelConfig


@pytree
class Classes:
    """What is scored in a step.

    Attributes:
        params: the target's, whose head has the rows of these tokens only.
        column: place of each token of the batch among them; of all others, anything.
        bias: to be added to scores: log of how many tokens each stands for.
    """

    params: Any
    column: Int[Array, "V"]
    bias: Float[Array, "M"]


def draw(
    config: ModelConfig, params: Any, tokens: Int[Array, "B T"], key: Array, num: int | None
) -> Classes:
    """The tokens that a step scores.

    Args:
        config: the target's.
        params: the target's.
        tokens: of the batch, which all are among them.
        key: PRNG key of the others.
        num: how many there are; None takes all.

    Raises:
        InputError: the tokens of a batch would not fit.
    """
    size = config.vocab_size
    if num is None or num >= size:
        return Classes(params=params, column=jnp.arange(size), bias=jnp.zeros(size))
    if num < 2 * tokens.size:
        raise InputError(
            f"num_classes={num} is too few for a batch of {tokens.size} tokens: at least twice as "
            "many are needed; raise it, or compute the rows in more micro_batches."
        )
    there = jnp.zeros(size).at[tokens].set(1.0)
    _, kept = jax.lax.top_k(there + jax.random.uniform(key, (size,)), num)
    count = there.sum()
    share = jnp.log(size - count) - jnp.log(num - count)
    return Classes(
        params=with_rows(config, params, kept),
        column=jnp.zeros(size, jnp.int32).at[kept].set(jnp.arange(num, dtype=jnp.int32)),
        bias=jnp.where(there[kept] > 0, 0.0, share),
    )


def check(num: int | None, shape: Any) -> None:
    """Refuses heads whose own output matrices would have to be cut in every step.

    Raises:
        InputError: they have some, and not all tokens are scored.
    """
    if num is not None and getattr(shape, "own_head", False):
        raise InputError(
            f"num_classes={num} is for heads that read the target's head; leave it out, or set "
            "shape.own_head to false."
        )


def with_rows(config: ModelConfig, params: Any, tokens: Int[Array, "M"]) -> Any:
    """The target's parameters with the head's rows of these tokens only."""
    if config.tied_embeddings:
        return params | {"embed": {"embedding": params["embed"]["embedding"][tokens]}}
    return params | {"head": {"kernel": params["head"]["kernel"][tokens]}}
