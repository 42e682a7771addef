"""One slot per step or as a schedule says, until the target knows the answer: then all at once.

The gap between the target's two best scores, averaged over all undecided slots, says how far it is
from changing its mind. Once it reaches a threshold, which falls as the steps go by, every undecided
slot of the window takes its candidate. Without blocks that ends the text; with them, the block.

Gaps are of scores before temperature, so thresholds are a matter of the model. The paper watches
the five slots after a given text that announces the answer.

Exactness: none; with thresholds that are never reached it is `quota`.
Source: arXiv:2508.19982 (Prophet); its three thresholds are of the released code.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.commits import quota
from jaxdecode.core.protocols import Commit, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Decision, Request, Window
from jaxdecode.errors import InputError

# Where the parts of the steps end that have thresholds of their own, as in the release.
_PARTS = (0.33, 0.67)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(quota.Config):
    """Options: those of `quota`, until the answer is known, and two more.

    Attributes:
        gaps: thresholds in the first, second and last third of the steps.
        watch: "mean" gap of the undecided slots, or the "least".
    """

    gaps: tuple[float, float, float] = (7.5, 5.0, 2.5)
    watch: Literal["mean", "least"] = "mean"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
        if not isinstance(self.gaps, tuple) or len(self.gaps) != len(_PARTS) + 1:
            raise InputError(f"gaps={self.gaps!r} is not valid; it must be three numbers.")
        for gap in self.gaps:
            checks.number("gaps", gap, "three numbers", lambda _: True)
        checks.choice("watch", self.watch, ("mean", "least"))


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
    usual = quota.chosen(config, request, window, candidates)
    steps = config.steps or jnp.maximum(window.size, 1)
    part = sum((window.step / steps >= end).astype(jnp.int32) for end in _PARTS)
    known = gap(config, window, candidates) >= jnp.asarray(config.gaps)[part]
    return Decision(commit=jnp.where(known[:, None], window.open, usual))


def gap(config: Config, window: Window, candidates: Candidates) -> Float[Array, "B"]:
    """Distance of the two best scores over the undecided slots; infinite where there are none."""
    best = jax.lax.top_k(candidates.scores, 2)[0]
    between = best[..., 0] - best[..., 1]
    if config.watch == "least":
        return jnp.where(window.open, between, jnp.inf).min(-1)
    return jnp.where(window.open, between, 0.0).sum(-1) / window.open.sum(-1)
