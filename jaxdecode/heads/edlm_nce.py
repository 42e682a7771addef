"""Energy of EDLM: one number for a text that a window is to hold, given what is known.

A row per slot of a window joins the target's state of the slot, which has seen all that is known,
with the embedding of the token that the text puts there. Layers in which all rows see each other
read the rows; each leaves a number, and their mean is the energy. Fresh energies are 0.

Source: arXiv:2410.21357 section 4.2. Differs: the network there is the size of the target, and
reads embeddings of the known text in place of the target's states of it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Model
from jaxdecode.models import extra, residual
from jaxdecode.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        num_layers: layers, each like one of the target's.
    """

    num_layers: int = 1

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_layers", self.num_layers, low=1, high=64)


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training."""
    del target
    width, (enter, *layers) = config.hidden_size, jax.random.split(key, shape.num_layers + 1)
    own = extra.like(config)
    return {
        "enter": extra.init_pair(width, enter),
        "layers": {str(i): extra.init_block(own, key) for i, key in enumerate(layers)},
        "out": {"kernel": jnp.zeros((width, 1)), "bias": jnp.zeros(1)},
    }


def parts(
    model: Model,
    params: dict[str, Any],
    hidden: Float[Array, "B T D"],
    embedded: Float[Array, "B T D"],
    program: MaskProgram,
) -> Float[Array, "B T"]:
    """The number of every slot, in float32; their mean over a window is the text's energy.

    Args:
        model: the target.
        params: of the energy.
        hidden: the target's states of what is known.
        embedded: the target's embeddings of the text.
        program: who sees whom (`extra.windows`).
    """
    pairs = extra.Pairs(extra.like(model.config), model.kv_dtype)
    layers = [params["layers"][str(i)] for i in range(len(params["layers"]))]
    x = pairs.read(params, layers, embedded, hidden, program)
    return residual.linear(params["out"], extra.unit(x))[..., 0]
