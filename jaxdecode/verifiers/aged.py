"""Early exit of Jacobi decoding: a guess that was corrected often enough is kept, right or not.

A window of guesses that moves over the text corrects each of them once per step. A guess in slot s
came in with the commit that reached slot s - W, so its age can be read off the canvas, and nothing
has to be remembered. Guesses of age `max_corrections` are accepted as they are; about younger ones
sample and match decides.
Stop tokens are never kept for their age: a wrong one would end the text.

Exactness: L3. Up to the first token that is kept for its age the text is that of `ar`; with
max_corrections=None all of it.
Cost: nothing.
Source: CEED-VLA, arXiv:2506.13725; differs: the paper stops after so many iterations of a window
that stands still and outputs all of it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.core.protocols import Models, Verifier
from jaxdecode.core.types import Canvas
from jaxdecode.trees import walk
from jaxdecode.verifiers.typical import take_first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        max_corrections: corrections after which a guess is kept; None keeps what is right only.
    """

    max_corrections: int | None = 4

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if self.max_corrections is not None:
            checks.integer("max_corrections", self.max_corrections, low=1)


def make(config: Config, models: Models) -> Verifier:
    """The verifier."""
    del models
    most = config.max_corrections
    if most is None:
        return walk.make(lambda visit: visit.scores, reads_children=False)

    def marks(weights, request, canvas, proposal, output):
        del weights, output
        found = jax.vmap(lambda row, depth: ages(row, depth, proposal.max_depth))
        return jnp.where(walk.stops(request, proposal), -1.0, found(canvas, proposal.depth))

    def rule(visit: walk.Visit) -> Float[Array, "V"]:
        if visit.marks is None:
            return visit.scores
        return take_first(visit, visit.marks >= most)

    return walk.make(rule, marks=marks)


def ages(row: Canvas, depth: Array, window: int) -> Float[Array, "N"]:
    """How often the guesses at these depths were corrected, in a window that moves on."""
    step = row.commit_step.max() + 1
    reached = row.commit_step[jnp.maximum(row.length + depth - window, 0)]
    return (step - reached - 1).astype(jnp.float32)
