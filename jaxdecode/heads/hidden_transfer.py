"""Hidden transfer: one matrix per place turns a state inside the target into one further on.

Matrix i reads what enters a layer at a token, and its product enters that layer as the state of a
token i + 1 places on (arXiv:2404.12022). They begin as the identity.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.errors import InputError
from jaxdecode.models.config import ModelConfig
from jaxdecode.trees import injected, probes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes.

    Attributes:
        num_probes: states that are transferred, and tokens that are guessed beyond the next.
        layers: number of the layer that each state enters, not falling; None takes the middle of
            the target for all.
    """

    num_probes: int = 3
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_probes", self.num_probes, low=1, high=64)
        if self.layers is None:
            return
        whole = all(isinstance(n, int) and n >= 0 for n in self.layers)
        if (
            not whole
            or len(self.layers) != self.num_probes
            or list(self.layers) != sorted(self.layers)
        ):
            raise InputError(
                f"layers={self.layers!r} must be {self.num_probes} numbers of layers from 0 on, "
                "none smaller than the one before."
            )


def layers_of(shape: Shape, num_layers: int) -> tuple[int, ...]:
    """The layer that each state enters.

    Raises:
        InputError: the target has no such layer.
    """
    layers = shape.layers or (num_layers // 2,) * shape.num_probes
    if layers[-1] >= num_layers:
        raise InputError(
            f"layers={layers} do not fit a target of {num_layers} layers; the last one is "
            f"{num_layers - 1}."
        )
    return layers


def init(shape: Shape, config: ModelConfig, key: Array, target: Any) -> dict[str, Any]:
    """Parameters before training: every state stays as it is."""
    del key, target
    layers_of(shape, config.num_layers)
    eye = jnp.eye(config.hidden_size)
    return {"kernel": jnp.broadcast_to(eye, (shape.num_probes, *eye.shape))}


def transfer(
    kernel: Float[Array, "n D D"], number: int, state: Float[Array, "*B D"]
) -> Float[Array, "*B D"]:
    """The state `number + 1` places on."""
    return (state.astype(kernel.dtype) @ kernel[number]).astype(state.dtype)


def changes(
    params: dict[str, Any],
    layers: tuple[int, ...],
    numbers: Int[Array, "B T"],
    probe: Bool[Array, "B T"],
    source: Int[Array, "B T"],
) -> dict[int, injected.Change]:
    """What enters the layers that probes enter, in place of what would.

    Args:
        params: the matrices.
        layers: the layer that each probe enters, by number.
        numbers: `[B, T]`, the number of each probe.
        probe: `[B, T]`, which rows are probes.
        source: `[B, T]`, the row that each probe reads.
    """

    def change(layer):
        def run(x):
            read = probes.at(x, source)
            for j, own in enumerate(layers):
                if own == layer:
                    made = transfer(params["kernel"], j, read)
                    x = jnp.where((probe & (numbers == j))[..., None], made, x)
            return x

        return run

    return {layer: change(layer) for layer in set(layers)}
