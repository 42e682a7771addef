"""What the target would put into each slot of a window: one draw of its warped law per slot.

The draw of a slot is keyed by the row's number of steps besides its position, so that a slot that
stays undecided is drawn anew. The mask token is never drawn.

Exactness: each candidate alone has the target's law given what is decided; several committed at
once are drawn as if they were independent, which is what makes parallel filling approximate.
Source: arXiv:2502.09992 section 2.4.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from jaxdecode.core.commit import slots
from jaxdecode.core.protocols import Models, TargetOutput, Verifier, Weights
from jaxdecode.core.types import Candidates, Canvas, Request, Sampling, Window
from jaxdecode.sampling import noise, warp
from jaxdecode.trees import walk


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


def candidates(
    with_noise: bool,
    key: Array,
    sampling: Sampling,
    canvas: Canvas,
    window: Window,
    logits: Float[Array, "W V"],
    allowed: UInt32[Array, "W M"] | None = None,
) -> Candidates:
    """Those of one row."""
    size = logits.shape[-1]
    scores = logits.at[:, window.mask_token].set(-jnp.inf)
    seen = walk.seen_tokens(canvas, sampling, size)

    def draw(row, position, allowed):
        drawn = None
        if with_noise:
            drawn = noise.again(key, position, window.calls, size=size)
        token = warp.draw(row, sampling, seen, drawn, allowed)
        return token, row[token] - jax.nn.logsumexp(row)

    tokens, logprob = jax.vmap(draw)(scores, slots(window), allowed)
    return Candidates(tokens=tokens, logprob=logprob, scores=scores)
