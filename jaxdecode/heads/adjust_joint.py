"""Sampler layer of ADJUST: what the target would say after slots were filled in the same step.

A row per slot of a window joins the target's state of the slot, as it was before the step, with the
embedding of what the slot holds by now: a token, or the mask token. One decoder layer, in which all
rows see each other, adds to the states, and the target's own head reads them. Fresh layers add
nothing (after arXiv:2509.22738; the layer's details are ours).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Model
from jaxdecode.models import extra, residual
from jaxdecode.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """No sizes: the layer is one of the target's."""


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training."""
    del shape, target
    width, (enter, layer) = config.hidden_size, jax.random.split(key)
    return {
        "enter": extra.init_pair(width, enter),
        "layer": extra.init_block(extra.like(config), layer),
        "out": {"kernel": jnp.zeros((width, width)), "bias": jnp.zeros(width)},
    }


def adjusted(
    model: Model,
    params: dict[str, Any],
    hidden: Float[Array, "B T D"],
    embedded: Float[Array, "B T D"],
    program: MaskProgram,
) -> Float[Array, "B T D"]:
    """States for the target's head.

    Args:
        model: the target.
        params: of the layer.
        hidden: the target's states before the step.
        embedded: the target's embeddings of what the slots hold.
        program: who sees whom: `extra.windows`.
    """
    pairs = extra.Pairs(extra.like(model.config), model.kv_dtype)
    x = pairs.read(params, [params["layer"]], embedded, hidden, program)
    return (hidden.astype(jnp.float32) + residual.linear(params["out"], x)).astype(hidden.dtype)
