"""Medusa-1: cross-entropy of every head on the token it guesses; the target is frozen.

Loss: sum over heads k (from 0) of decay^(k+1) CE(head k, token k + 2 places on)
(arXiv:2401.10774 section 2.2.1).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.core import ops
from jaxdecode.core.protocols import Models
from jaxdecode.errors import InputError
from jaxdecode.heads import medusa
from jaxdecode.training import classes, features, linear, losses, probed
from jaxdecode.training.objective import Objective, Start, Texts, ahead, heads_only


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        decay: weight of each head relative to the one before.
        num_places: places of a row that are learned in one step; None learns all.
        num_classes: tokens that are scored in one step (`training/classes.py`); None scores all.
        ridge: affine maps begin with what follows linearly from the state that a head reads: the
            state of which the target reads its token, by least squares with this penalty; None
            begins with the state that they read.
    """

    decay: float = 0.8
    num_places: int | None = None
    num_classes: int | None = None
    ridge: float | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("decay", self.decay, "a number in (0, 1]", lambda x: 0 < x <= 1)
        for name in ("num_places", "num_classes"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), low=1)
        if self.ridge is not None:
            checks.number("ridge", self.ridge, "above 0", lambda x: x > 0)


def make(config: Config, models: Models) -> Objective:
    """The objective of heads on a frozen target.

    Raises:
        InputError: settings for heads of another shape.
    """
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    target = model.target
    classes.check(config.num_classes, shape)
    if config.ridge is not None and not shape.affine:
        raise InputError(
            f"ridge={config.ridge} is what affine maps begin with, and these heads have none; set "
            "shape.affine to true, or leave ridge out."
        )
    said = features.states(target)

    def init(key, weights, texts):
        params = medusa.init(shape, model.config, key, weights.target)
        if config.ridge is not None and texts is not None:
            params |= fitted(config.ridge, shape.num_heads, said, weights.target, texts)
        return Start(params)

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen = jax.lax.stop_gradient(target_params)
        hidden = features.known(batch, said, frozen)
        guesses = [ahead(batch, k + 2) for k in range(shape.num_heads)]
        wanted, weight = (jnp.stack(arrays, -1) for arrays in zip(*guesses, strict=True))
        where, which = jax.random.split(key)
        scored = classes.draw(model.config, frozen, batch.tokens, which, config.num_classes)

        def per_token(params, hidden, wanted):
            scores = medusa.logits(
                shape, params, hidden, lambda states: target.logits(scored.params, states)
            )
            errors = losses.cross_entropy(scores + scored.bias, wanted)
            return errors, scores.argmax(-1) == wanted

        learned = probed.choose(weight[..., 0], where, config.num_places)
        states, column = (ops.taken(x, learned) for x in (hidden, scored.column[wanted]))
        share = losses.shares(ops.taken(weight, learned))
        counts = share * decays(shape.num_heads, config.decay)
        value, hits = losses.summed(per_token, params, states, column, counts)
        rates = (hits * share).sum((0, 1))
        return value, {f"accuracy.{k}": rate for k, rate in enumerate(rates)}

    return Objective(init=init, loss=loss, export=heads_only, features=said)


def fitted(
    ridge: float,
    num_heads: int,
    said: Callable[..., Float[Array, "B T D"]],
    target_params: Any,
    texts: Texts,
) -> dict[str, Array]:
    """Affine maps from a state of the target to those one and more places on.

    Args:
        ridge: penalty of the kernels' squares.
        num_heads: maps.
        said: (target params, batch) -> states.
        target_params: the target's.
        texts: all that is trained on.
    """

    def pairs(batch):
        hidden = features.known(batch, said, target_params)
        places = range(num_heads)
        return [(hidden, features.shift(hidden, k + 1), ahead(batch, k + 2)[1]) for k in places]

    kernels, biases = zip(*linear.fit(texts.batches(), pairs, ridge), strict=True)
    return {"affine.kernel": jnp.stack(kernels), "affine.bias": jnp.stack(biases)}


def combine(errors: Float[Array, "H"], decay: float) -> Float[Array, ""]:
    """The weighted sum of the heads' errors."""
    return (errors * decays(len(errors), decay)).sum()


def decays(num_heads: int, decay: float) -> Float[Array, "H"]:
    """Weights of the heads."""
    return decay ** jnp.arange(1, num_heads + 1)
