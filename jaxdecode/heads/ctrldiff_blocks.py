"""Policy of CtrlDiff: how long the next block shall be, by what the target says of the slots ahead.

Two layers read, of each of the slots that the longest block has, the probability of the likeliest
token and the entropy of the law. Slots that need not be filled are sure. An untrained policy finds
all lengths equally good. (The policy of arXiv:2505.14455 reads the context; this network is ours
and reads no hidden states.)
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdecode import checks
from jaxdecode.errors import InputError
from jaxdecode.models.config import ModelConfig
from jaxdecode.sampling import confidence

# Numbers that a slot is read by.
_NUM_SHOWN = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        sizes: lengths that a block may have, rising.
        num_hidden: width between the layers.
    """

    sizes: tuple[int, ...] = (4, 8, 16, 32)
    num_hidden: int = 32

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if not isinstance(self.sizes, tuple) or not self.sizes:
            raise InputError(f"sizes={self.sizes!r} is not valid; give lengths of blocks.")
        for size in self.sizes:
            checks.integer("sizes", size, low=1, high=4096)
        if list(self.sizes) != sorted(set(self.sizes)):
            raise InputError(f"sizes={self.sizes!r} must rise, for example (4, 8, 16, 32).")
        checks.integer("num_hidden", self.num_hidden, low=1, high=4096)

    @property
    def longest(self) -> int:
        """Slots that the policy reads."""
        return self.sizes[-1]


class Policy(nn.Module):
    """The two layers, in float32."""

    shape: Shape

    @nn.compact
    def __call__(self, shown: Float[Array, "*B W f"]) -> Float[Array, "*B n"]:
        first = nn.Dense(self.shape.num_hidden, dtype=jnp.float32)
        zeros = nn.initializers.zeros
        last = nn.Dense(len(self.shape.sizes), kernel_init=zeros, dtype=jnp.float32)
        return last(nn.relu(first(shown.reshape(*shown.shape[:-2], -1))))


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training; the target decides none of their sizes."""
    del config, target
    nothing = jnp.zeros((1, shape.longest, _NUM_SHOWN))
    params: Any = Policy(shape).init(key, nothing)["params"]
    return params


def shown(scores: Float[Array, "*B W V"], open: Bool[Array, "*B W"]) -> Float[Array, "*B W f"]:
    """What the policy reads: probability of the likeliest token, and entropy in nats.

    Args:
        scores: of the target, for the slots ahead.
        open: slots that are to be filled; the others, and those past the text's end, are sure.
    """
    likeliest = jax.nn.softmax(scores).max(-1)
    entropy = confidence.entropy_of(scores)
    return jnp.stack([jnp.where(open, likeliest, 1.0), jnp.where(open, entropy, 0.0)], axis=-1)


def log_probs(
    shape: Shape, params: dict[str, Any], shown: Float[Array, "*B W f"]
) -> Float[Array, "*B n"]:
    """float32 log-probabilities of the sizes.

    Args:
        shape: sizes.
        params: of the policy.
        shown: as of `shown`.
    """
    found: Any = Policy(shape).apply({"params": params}, shown)
    return jax.nn.log_softmax(found)
