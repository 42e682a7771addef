"""Judge decoding: a linear head reads the target's hidden state at a draft and lets it pass.

The state after reading draft token i knows whether the token was a mistake, even where the target
would have said something else. Child i is accepted if sigmoid(w h_i + b) > threshold; otherwise
sample and match decides as always. Stop tokens are never let through by the head.

Exactness: L3. threshold = 1 is token-identical to `ar`.
Cost: one product of the hidden states with a vector.
Source: arXiv:2501.19309 (no code of the authors was found); differs: what the head does not let
through is checked by sample and match.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.core.protocols import Models, Verifier
from jaxdecode.errors import InputError
from jaxdecode.heads import judge
from jaxdecode.trees import walk
from jaxdecode.verifiers.typical import take_first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        threshold: score from which a draft passes, 0 to 1.
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("threshold", self.threshold, "from 0 to 1", lambda value: 0 <= value <= 1)


def make(config: Config, models: Models) -> Verifier:
    """The verifier."""
    del models
    if config.threshold == 1:  # nothing passes
        return walk.make(lambda visit: visit.scores, reads_children=False)

    def marks(weights, request, canvas, proposal, output):
        del canvas
        if not isinstance(weights.heads, dict) or set(weights.heads) != {"kernel", "bias"}:
            raise InputError(
                "this verifier reads a trained head of kind 'judge', which the method was not "
                "given; use method judge_decoding."
            )
        found = jax.nn.sigmoid(judge.scores(weights.heads, output.hidden))
        return jnp.where(walk.stops(request, proposal), -1.0, found)

    def rule(visit: walk.Visit) -> Float[Array, "V"]:
        if visit.marks is None:
            return visit.scores
        return take_first(visit, visit.marks > config.threshold)

    return walk.make(rule, marks=marks)
