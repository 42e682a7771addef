"""Spans of neighbouring slots, the surest first, at the pace of a cosine.

Neighbours in sound depend on each other so much that single slots say little: all undecided slots
of a span are decided together. Before step i of S, max(floor(n cos(pi/2 i / (S - 1))), 1) of the n
spans of a block are undecided; the last step decides all. There are no more steps than spans. A
span counts with the probability of its likeliest candidate, or with the product over all of its.

Spans lie at multiples of their length on the canvas: given text or a block may cut one.

Exactness: none; spans of one slot are MaskGIT's rule (arXiv:2202.04200).
Source: arXiv:2401.04577 (MAGNeT, one codebook). There the prompt ends with a span, and guidance and
temperature fall from step to step.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks
from jaxdecode.commits.quota import ROUNDING
from jaxdecode.core.protocols import Commit, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Decision, Request, Window
from jaxdecode.sampling import confidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        span: slots of a span, at least 1.
        steps: steps per block, at least 1.
        span_score: what a span counts with: its "likeliest" candidate or "all" of them.
    """

    span: int = 3
    steps: int = 20
    span_score: Literal["likeliest", "all"] = "likeliest"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("span", self.span, low=1)
        checks.integer("steps", self.steps, low=1)
        checks.choice("span_score", self.span_score, ("likeliest", "all"))


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
    del weights, request
    span = confidence.slots(window) // config.span
    span -= span[:, :1]
    num_spans = window.open.shape[1] // config.span + 2
    ours = window.open | (confidence.taken(canvas.commit_step, window) >= 0)

    def any_of(marked):
        return jax.vmap(lambda s, m: jnp.zeros(num_spans, bool).at[s].max(m))(span, marked)

    is_open, num = any_of(window.open), any_of(ours).sum(-1, dtype=jnp.int32)
    left = is_open.sum(-1, dtype=jnp.int32)
    due = jnp.where(
        window.step >= _steps(config, num) - 1,
        left,
        left - remaining(config, num, window.step + 1),
    )
    score = _score(config, num_spans, span, window, candidates)
    chosen = confidence.best(score, is_open, jnp.maximum(due, 0))
    return Decision(commit=window.open & jnp.take_along_axis(chosen, span, axis=1))


def remaining(config: Config, num: Int[Array, "B"], step: Int[Array, "B"]) -> Int[Array, "B"]:
    """Spans that are undecided before a step, of `num`."""
    share = jnp.cos(jnp.pi / 2 * step / jnp.maximum(_steps(config, num) - 1, 1))
    return jnp.maximum(jnp.floor(num * share + ROUNDING), 1).astype(jnp.int32)


def _steps(config: Config, num: Int[Array, "B"]) -> Int[Array, "B"]:
    return jnp.minimum(config.steps, num)


def _score(
    config: Config, num_spans: int, span: Int[Array, "B W"], window: Window, candidates: Candidates
) -> Float[Array, "B n"]:
    if config.span_score == "likeliest":
        known = jnp.where(window.open, candidates.logprob, -jnp.inf)
        return jax.vmap(lambda s, x: jnp.full(num_spans, -jnp.inf).at[s].max(x))(span, known)
    known = jnp.where(window.open, candidates.logprob, 0.0)
    return jax.vmap(lambda s, x: jnp.zeros(num_spans).at[s].add(x))(span, known)
