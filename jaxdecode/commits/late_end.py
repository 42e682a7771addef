"""`quota`, with end tokens held back while it is early.

Models that were trained on padded answers are sure of end tokens at the far end of a text before
they know what to say; filled by probability, a text without blocks then ends early. The probability
of a candidate that is an end token (`stop_tokens`, or the model's own) counts in the order as

    p (g + (1 - g) r)

with r from 0 in the first step to 1 in the last one. Only turns change, never a token.

Exactness: none; with g = 1, or without end tokens, it is `quota`.
Source: arXiv:2509.23924 (EOSER). r is the share of the steps; with the schedule "doubling" that of
the slots that are decided once this step is done, as there.
"""

import dataclasses
import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks
from jaxdecode.commits import quota
from jaxdecode.core.protocols import Commit, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Decision, Request, Window
from jaxdecode.errors import InputError
from jaxdecode.sampling import confidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(quota.Config):
    """Options: those of `quota`, and one more. The order is "probability" or "margin".

    Attributes:
        end_weight: g, in [0, 1].
    """

    end_weight: float = 0.4

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
        checks.number("end_weight", self.end_weight, "a number in [0, 1]", lambda x: 0 <= x <= 1)
        if self.order not in ("probability", "margin"):
            raise InputError(
                f"order={self.order!r} cannot be weighted; use 'probability' or 'margin'."
            )


def make(config: Config, models: Models) -> Commit:
    """The rule."""
    del models
    return Commit(select=functools.partial(_select, config))


def _select(
    config: Config,
    weights: Weights,
    request: Request,
    canvas: Canvas,
    window: Window,
    candidates: Candidates,
) -> Decision:
    del weights, canvas
    num = quota.due(config, window)
    ends = (candidates.tokens[..., None] == request.stop_tokens).any(-1)
    held = config.end_weight + (1 - config.end_weight) * _progress(config, window, num)
    score = quota.scores(config, request, window, candidates)
    score = score * jnp.where(ends, held[:, None], 1.0)
    return Decision(commit=confidence.best(score, window.open, num))


def _progress(config: Config, window: Window, num: Int[Array, "B"]) -> Float[Array, "B"]:
    if config.schedule != "doubling":
        return quota.progress(config, window)
    left = window.open.sum(-1, dtype=jnp.int32)
    return (window.size - left + num) / jnp.maximum(window.size, 1)
