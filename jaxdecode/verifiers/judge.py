"""Judge decoding: a linear head reads the target's hidden state at a draft and lets it pass.

The state after reading draft token i knows whether the token was a mistake, even where the target
would have said something else. Child i is accepted if sigmoid(w h_i + b) > threshold; otherwise
sample and match decides as always. Stop tokens are never let through by the head.

Exactness: L3. threshold = 1 is token-identical to `ar`, and needs no head.
Cost: one product of the hidden states with a vector.
Source: arXiv:2501.19309 (no code of the authors was found); differs: what the head does not let
through is checked by sample and match.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxdecode import checks
from jaxdecode.core.protocols import Verifier, Weights
from jaxdecode.errors import CorruptCheckpointError, InputError
from jaxdecode.trees import walk
from jaxdecode.verifiers.typical import take_first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        head: .safetensors file with the head: `weight` with one number per hidden unit, and `bias`.
        threshold: score from which a draft passes, 0 to 1.
    """

    head: str | None = None
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if self.head is not None and not isinstance(self.head, str | Path):
            raise InputError(f"head={self.head!r} is not the path of a .safetensors file.")
        checks.number("threshold", self.threshold, "from 0 to 1", lambda value: 0 <= value <= 1)


def make(config: Config) -> Verifier:
    """The verifier."""
    if config.threshold == 1:  # nothing passes; no head is needed
        return walk.make(lambda visit: visit.scores, reads_children=False)

    def prepare(weights: Weights) -> Weights:
        return weights._replace(verifier=load_head(config.head))

    def marks(weights, request, canvas, proposal, output):
        del canvas
        found = score(weights.verifier, output.hidden)
        return jnp.where(walk.stops(request, proposal), -1.0, found)

    def rule(visit: walk.Visit) -> Float[Array, "V"]:
        if visit.marks is None:
            return visit.scores
        return take_first(visit, visit.marks > config.threshold)

    return walk.make(rule, marks=marks)._replace(prepare=prepare)


def score(
    head: tuple[Float[Array, "D"], Float[Array, ""]], hidden: Float[Array, "B N D"]
) -> Float[Array, "B N"]:
    """How much the head trusts each node, 0 to 1."""
    weight, bias = head
    if weight.shape[0] != hidden.shape[-1]:
        raise InputError(
            f"the judge head is for {weight.shape[0]} hidden units, but the target has "
            f"{hidden.shape[-1]}; use a head that was trained on this model."
        )
    return jax.nn.sigmoid(hidden.astype(jnp.float32) @ weight + bias)


def load_head(path: str | Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a head's file, float32."""
    if path is None:
        raise InputError(
            "judge decoding needs a trained head: pass head=FILE, a .safetensors file with "
            "`weight` (one number per hidden unit) and `bias`."
        )
    path = Path(path)
    if not path.is_file():
        raise InputError(f"head={str(path)!r} is not a file; it must be a .safetensors file.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise CorruptCheckpointError(
            f"{path} is not a readable .safetensors file: {error}"
        ) from None
    missing = {"weight", "bias"} - set(tensors)
    if missing:
        raise InputError(
            f"{path} has no {' and no '.join(sorted(missing))}; a judge head has weight and bias."
        )
    weight = tensors["weight"].astype(np.float32).squeeze()
    bias = tensors["bias"].astype(np.float32).squeeze()
    if weight.ndim != 1 or bias.ndim != 0:
        raise InputError(
            f"{path} has weight {tensors['weight'].shape} and bias {tensors['bias'].shape}; a "
            "judge head has one row of weights and one bias."
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias)):
        raise InputError(f"{path} holds numbers that are not finite.")
    return weight, bias
