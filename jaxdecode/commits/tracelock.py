"""The few candidates that a trained controller trusts most, and at least the likeliest one.

Idea: what matters is whether a candidate is what the plain sampler would have in the end. A
controller that has seen traces of it scores every undecided slot and sets a threshold for the block
(`training/objectives/tracelock.py`). An end token is trusted only where all before it is decided,
or texts would end too early.

Exactness: none; with nothing that the controller trusts it is `quota` with one slot per step.
Cost: a network of a few thousand parameters per slot.
Source: arXiv:2605.24697 (TraceLock). Differs: the controller reads six features and no hidden
states, it looks at the block in place of a window that moves, and there is no schedule besides.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxdecode import checks
from jaxdecode.core.protocols import Commit, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Decision, Request, Window
from jaxdecode.heads import tracelock
from jaxdecode.sampling import confidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        accept: probability from the controller from which a candidate is committed, in (0, 1).
        most: candidates that are committed for it in one step.
        guard_end: whether an end token must be the first undecided slot to be trusted.
    """

    accept: float = 0.99
    most: int = 4
    guard_end: bool = True

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("accept", self.accept, "a number in (0, 1)", lambda x: 0 < x < 1)
        checks.integer("most", self.most, low=1)


def make(config: Config, models: Models) -> Commit:
    """The rule."""
    assert models.heads is not None
    return Commit(select=functools.partial(_select, config, models.heads.shape))


def _select(
    config: Config,
    shape: tracelock.Shape,
    weights: Weights,
    request: Request,
    canvas: Canvas,
    window: Window,
    candidates: Candidates,
) -> Decision:
    del canvas
    score = confidence.probability(candidates)
    seen = tracelock.features(
        window.open,
        window.size,
        score,
        confidence.entropy(candidates),
        confidence.margin(candidates),
    )
    odds, _ = tracelock.trust(shape, weights.heads, seen, window.open)
    trusted = window.open & (odds >= math.log(config.accept / (1 - config.accept)))
    if config.guard_end:
        trusted &= ~_early_end(request, window, candidates)
    few = confidence.best(odds, trusted, jnp.full_like(window.start, config.most))
    return Decision(commit=few | confidence.best(score, window.open, jnp.ones_like(window.start)))


def _early_end(request: Request, window: Window, candidates: Candidates) -> Bool[Array, "B W"]:
    """Candidates that are end tokens with undecided slots before them."""
    is_end = (candidates.tokens[..., None] == request.stop_tokens).any(-1)
    return is_end & (jnp.cumsum(window.open, axis=-1) > 1)
