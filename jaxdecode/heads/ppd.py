"""Prompt tokens: embeddings that ask the target for the tokens ahead (arXiv:2405.18628).

They are all that is trained: `num_probes` rows as wide as the target's states, which enter it as
its own embeddings do.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        num_probes: prompt tokens, and tokens that are guessed beyond the next.
    """

    num_probes: int = 3

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_probes", self.num_probes, low=1, high=64)


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Embeddings before training: those of random tokens."""
    return {"embedding": embeddings(config, key, target, shape.num_probes)}


def embeddings(config: ModelConfig, key: Array, target: Any, num: int) -> Float[Array, "n D"]:
    """Rows of the target's table, scaled as the target scales them."""
    chosen = jax.random.randint(key, (num,), 0, config.vocab_size)
    rows = target["embed"]["embedding"][chosen].astype(jnp.float32)
    return rows * config.embed_scale
