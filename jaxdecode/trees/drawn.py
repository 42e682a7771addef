"""What a row's target would put into each slot of a window, drawn slot by slot from its scores."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from jaxdecode.core.commit import slots
from jaxdecode.core.types import Candidates, Canvas, Sampling, Window
from jaxdecode.sampling import noise, warp
from jaxdecode.trees import walk


def candidates(
    with_noise: bool,
    key: Array,
    sampling: Sampling,
    canvas: Canvas,
    window: Window,
    logits: Float[Array, "W V"],
    allowed: UInt32[Array, "W M"] | None = None,
) -> Candidates:
    """The draws of one row, keyed by position and the row's number of steps.

    Args:
        with_noise: False where all rows are greedy.
        key: of the row.
        sampling: the row's law.
        canvas: the row's, for tokens that it has already.
        window: the row's.
        logits: scores of the window's slots; the mask token is never drawn.
        allowed: tokens that a grammar lets fit each slot, packed (`core.grammar`).
    """
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
