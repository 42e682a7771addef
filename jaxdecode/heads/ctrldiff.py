"""Classifier of CtrlDiff: which attribute a text has, by how often it uses each token.

Every token has a few features; a text has the mean of its tokens', and from these come the classes.
A slot that is undecided has the mean of the features that it may come to have. With
`num_hidden=0` the features are the classes' own, so that scores are linear in the tokens' counts.
(arXiv:2505.14455 guides by a classifier and does not say which; this one is ours.)
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.models import residual
from jaxdecode.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        num_classes: attributes, of which a text has one.
        num_hidden: features of a token; 0 is one per class, with nothing behind them.
    """

    num_classes: int = 2
    num_hidden: int = 64

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_classes", self.num_classes, low=2, high=4096)
        checks.integer("num_hidden", self.num_hidden, low=0, high=4096)


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training; they find all classes equally likely."""
    del target
    size, width = config.vocab_size, shape.num_hidden
    if not width:
        return {"table": jnp.zeros((size, shape.num_classes))}
    out = {"kernel": jnp.zeros((width, shape.num_classes)), "bias": jnp.zeros(shape.num_classes)}
    return {"table": jax.random.normal(key, (size, width)), "out": out}


def num_classes(params: dict[str, Any]) -> int:
    """Attributes that the classifier knows."""
    return params["out"]["bias"].shape[0] if "out" in params else params["table"].shape[1]


def log_probs(params: dict[str, Any], mean: Float[Array, "*B F"]) -> Float[Array, "*B C"]:
    """float32 log-probabilities of the classes, from the mean of a text's features."""
    scores = mean.astype(jnp.float32)
    if "out" in params:
        scores = residual.linear(params["out"], jax.nn.silu(scores))
    return jax.nn.log_softmax(scores)


def pull(
    params: dict[str, Any], mean: Float[Array, "F"], count: Float[Array, ""], wanted: int
) -> Float[Array, "V"]:
    """To first order, how the log-probability of a class changes with the token of one slot.

    Its gradient by what an undecided slot holds; all slots of a text have the same.

    Args:
        params: of the classifier.
        mean: of the features of a text.
        count: its slots.
        wanted: the class.
    """
    slope = jax.grad(lambda mean: log_probs(params, mean)[wanted])(mean.astype(jnp.float32))
    return params["table"].astype(jnp.float32) @ (slope / jnp.maximum(count, 1))
