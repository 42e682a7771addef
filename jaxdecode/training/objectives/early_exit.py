"""The target learns to be read early: its own head reads what its first layers leave.

Loss: the mean over exits, by weight, of the cross-entropy on the next token (arXiv:2404.16710). An
exit after layer i (from 0) weighs, with `weights`,

    "uniform" 1    "linear" i + 1    "sqrt" sqrt(i + 1)    "inverse" 1 / (i + 1)
    "sum" the sum of j + 1 over this exit and those before it

and exits before the last layer `early` times that. The last layer is read in every step, others by
the curriculum. Under "rotational" a step reads every `stride`-th layer, in each step those one
later than in the step before: all exits take turns, and a step costs a few heads. Under "gradual"
exits are switched on one by one, from the last to the first: the exit after layer i once the part
1 - i / L of the first `opening` of the run is over. Layers are dropped, for whole rows, with a
chance that grows from 0 at the first layer to `dropout` at the last as 2^(i / (L - 1)) - 1, so that
no exit relies on what comes behind it.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.errors import InputError
from jaxdecode.training import whole
from jaxdecode.training.objective import Moment, Objective, program

Weighting = Literal["uniform", "linear", "sum", "sqrt", "inverse"]
Curriculum = Literal["rotational", "gradual"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        weights: how exits weigh by their layer.
        early: weight of exits before the last layer over what `weights` says.
        curriculum: which exits are read in which step.
        stride: layers from one exit of a step to the next under "rotational"; 1 reads all in every
            step.
        opening: share of the run after which all exits are read under "gradual".
        dropout: chance that the last layer is dropped for a row; earlier ones less.
    """

    weights: Weighting = "sum"
    early: float = 0.2
    curriculum: Curriculum = "rotational"
    stride: int = 4
    opening: float = 0.5
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        for name, kind in (("weights", Weighting), ("curriculum", Curriculum)):
            given, known = getattr(self, name), get_args(kind)
            if given not in known:
                options = ", ".join(known)
                raise InputError(f"{name}={given!r} is not known; use one of {options}.")
        checks.number("early", self.early, "at least 0", lambda x: x >= 0)
        checks.integer("stride", self.stride, low=1)
        checks.number("opening", self.opening, "a number in (0, 1]", lambda x: 0 < x <= 1)
        checks.number("dropout", self.dropout, "from 0 to below 1", lambda x: 0 <= x < 1)


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the target."""
    model = models.target
    target, num_layers = model.target, model.config.num_layers
    taps = tuple(f"layer.{i}" for i in range(num_layers))

    def loss(params, target_params, batch, key, moment):
        del target_params
        chance = dropped(num_layers, config.dropout)
        shape = (batch.tokens.shape[0], num_layers)
        acts = jax.random.uniform(key, shape) >= chance
        output = target.forward(params, batch.tokens, program(batch), None, taps, acts)
        layers, valid = exits(moment, num_layers, config)
        states = jnp.stack([output.taps[name] for name in taps])
        errors, rates = whole.read(model, params, jnp.moveaxis(states[layers], 0, 2), batch)
        weight = weigh(layers, valid, num_layers, config)
        early = valid.at[-1].set(False)
        metrics = {
            "accuracy": rates[-1],
            "accuracy.early": (rates * early).sum() / jnp.maximum(early.sum(), 1),
            "error": errors[-1],
        }
        return (weight * errors).sum(), metrics

    return Objective(init=whole.of_target, loss=loss, export=whole.as_target)


def dropped(num_layers: int, most: float) -> Float[Array, "H"]:
    """The chance of each layer to be dropped."""
    place = jnp.arange(num_layers) / max(num_layers - 1, 1)
    return most * (2.0**place - 1)


def exits(
    moment: Moment, num_layers: int, config: Config
) -> tuple[Int[Array, "E"], Bool[Array, "E"]]:
    """Layers after which a step reads, ascending, the last one at the end; and which of them count.

    Args:
        moment: of the step.
        num_layers: of the model.
        config: the curriculum.
    """
    last = num_layers - 1
    if config.curriculum == "gradual":
        layers = jnp.arange(num_layers)
        over = moment.share / config.opening
        return layers, (over >= 1 - layers / num_layers) | (layers == last)
    first = moment.step % config.stride
    early = first + config.stride * jnp.arange(-(-last // config.stride))
    layers = jnp.append(jnp.minimum(early, last), last)
    return layers, jnp.append(early < last, True)


def weigh(
    layers: Int[Array, "E"], valid: Bool[Array, "E"], num_layers: int, config: Config
) -> Float[Array, "E"]:
    """Weights of exits after these layers; they sum to 1."""
    depth = jnp.where(valid, layers + 1.0, 0.0)
    weight = {
        "uniform": valid.astype(jnp.float32),
        "linear": depth,
        "sum": jnp.cumsum(depth) * valid,
        "sqrt": jnp.sqrt(depth),
        "inverse": valid / jnp.maximum(depth, 1.0),
    }[config.weights]
    weight = jnp.where(layers == num_layers - 1, weight, weight * config.early)
    return weight / weight.sum()
