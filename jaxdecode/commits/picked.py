"""The slots that the verifier has decided on: it took steps, which say what becomes final.

Exactness: the verifier's.
"""

import dataclasses

from jaxdecode.core.protocols import Commit, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Decision, Request, Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """No options."""


def make(config: Config, models: Models) -> Commit:
    """The rule."""
    del config, models
    return Commit(select=_select)


def _select(
    weights: Weights, request: Request, canvas: Canvas, window: Window, candidates: Candidates
) -> Decision:
    del weights, request, canvas, window
    assert candidates.picked is not None
    return Decision(commit=candidates.picked)
