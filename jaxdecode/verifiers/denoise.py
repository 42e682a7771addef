"""What the target would put into each slot of a window: one draw of its warped law per slot.

The draw of a slot is keyed by the row's number of steps besides its position, so that a slot that
stays undecided is drawn anew. The mask token is never drawn.

Exactness: each candidate alone has the target's law given what is decided; several committed at
once are drawn as if they were independent, which is what makes parallel filling approximate.
Source: arXiv:2502.09992 section 2.4.
"""

import dataclasses

from jaxdecode.core.protocols import Models, TargetOutput, Verifier, Weights
from jaxdecode.core.types import Candidates, Canvas, Request, Window
from jaxdecode.trees import walk
from jaxdecode.trees.drawn import candidates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """No options."""


def make(config: Config, models: Models) -> Verifier:
    """The verifier."""
    del config, models
    return Verifier(verify=_verify, windows=True)


def _verify(
    weights: Weights, request: Request, canvas: Canvas, proposal: Window, output: TargetOutput
) -> Candidates:
    del weights
    scored = output.logits, output.allowed
    return walk.by_row(candidates, request, canvas, proposal, *scored)
