"""Every slot that a trained filter takes for right, and at least the likeliest one.

Idea: some candidates are right long before the target is sure of them, and a small network can tell
from the probabilities of the whole block. It was taught by replays in which the text was known
(`training/objectives/learn2pd.py`). Once the end token is decided, what stands behind it in the
block is not filled any more, and no later block begins.

Exactness: none; with nothing that the filter trusts it is `quota` with one slot per step.
Cost: two matrices as wide as the block.
Source: arXiv:2509.25188 (Learn2PD; EoTP). Differs: the text is not cut at an end token that is only
predicted, nor is what stands behind a decided one hidden from the target.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdecode import checks
from jaxdecode.core.protocols import Commit, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Decision, Request, Window
from jaxdecode.errors import InputError
from jaxdecode.heads import learn2pd
from jaxdecode.sampling import confidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        gamma: probability from the filter above which a candidate is committed, in (0, 1).
        end_prediction: whether slots behind a decided end token stay as they are.
    """

    gamma: float = 0.9
    end_prediction: bool = True

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("gamma", self.gamma, "a number in (0, 1)", lambda x: 0 < x < 1)


def make(config: Config, models: Models) -> Commit:
    """The rule; at its first step it refuses blocks that the filter does not fit."""
    assert models.heads is not None
    return Commit(select=functools.partial(_select, config, models.heads.shape))


def _select(
    config: Config,
    shape: learn2pd.Shape,
    weights: Weights,
    request: Request,
    canvas: Canvas,
    window: Window,
    candidates: Candidates,
) -> Decision:
    width = window.open.shape[1]
    if width != shape.block_length:
        raise InputError(
            f"block_length={width} does not fit these heads, which were trained for blocks of "
            f"{shape.block_length} slots: use block_length={shape.block_length}, or train others "
            f"with shape.block_length={width}."
        )
    open = window.open
    if config.end_prediction:
        open &= ~_behind_end(request, canvas, window)
    odds = learn2pd.scores(shape, weights.heads, _held(canvas, window, candidates))
    sure = open & (odds > math.log(config.gamma / (1 - config.gamma)))
    one = jnp.ones_like(window.start)
    return Decision(commit=sure | confidence.best(confidence.probability(candidates), open, one))


def _held(canvas: Canvas, window: Window, candidates: Candidates) -> Float[Array, "B W"]:
    """The target's probability of what each slot holds; 1 past the text's end."""
    decided = confidence.taken(canvas.tokens, window)
    token = jnp.where(window.open, candidates.tokens, decided)
    scores = candidates.scores
    own = jnp.take_along_axis(scores, token[..., None], axis=-1)[..., 0]
    found = jnp.exp(own - jax.nn.logsumexp(scores, axis=-1))
    return jnp.where(confidence.slots(window) < canvas.end[:, None], found, 1.0)


def _behind_end(request: Request, canvas: Canvas, window: Window) -> Bool[Array, "B W"]:
    """Slots behind an end token that the target has decided on; the text cannot reach them."""
    token = confidence.taken(canvas.tokens, window)
    is_end = (token[..., None] == request.stop_tokens).any(-1)
    ends = is_end & ~window.open & (confidence.taken(canvas.commit_step, window) >= 0)
    return jnp.cumsum(ends, axis=-1) > 0
