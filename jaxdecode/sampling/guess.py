"""What the target would draw at a place, from scores that are not final: noise of the position.

A guess is never emitted, only proposed. Drawn with the noise that the target's own token of that
position is drawn with, it is the target's token wherever the scores turn out to be the target's.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxdecode.core.types import Canvas, Request
from jaxdecode.sampling import noise, warp


def tokens(
    request: Request,
    logits: Float[Array, "B N V"],
    position: Int[Array, "B N"],
    seen: Bool[Array, "B V"] | None = None,
    allowed: UInt32[Array, "B N M"] | None = None,
) -> Int[Array, "B N"]:
    """The token that scores and noise give at each position.

    Args:
        request: arrays of the batch's options.
        logits: scores, before the warp.
        position: absolute position of the tokens to draw.
        seen: tokens already in each row, for the repetition penalty; None leaves the penalty out.
        allowed: tokens that a grammar allows at each, packed; None leaves the grammar out.
    """
    sampling = request.sampling

    def draw(with_noise: bool):
        def node(row, position, allowed, key, sampling, seen):
            gumbel = None
            if with_noise:
                gumbel = noise.gumbel(key, position, purpose=noise.TOKEN, size=row.shape[0])
            return warp.draw(row, sampling, seen, gumbel, allowed)

        row = jax.vmap(node, in_axes=(0, 0, 0, None, None, None))
        axes: Any = dataclasses.replace(jax.tree.map(lambda _: 0, sampling), logit_bias=None)
        return jax.vmap(row, in_axes=(0, 0, 0, 0, axes, 0))(
            logits, position, allowed, request.key, sampling, seen
        )

    sampled = jnp.any(sampling.temperature >= warp.GREEDY_BELOW)
    return jax.lax.cond(sampled, lambda: draw(True), lambda: draw(False))


def seen(request: Request, canvas: Canvas, size: int) -> Bool[Array, "B V"] | None:
    """Tokens already in each row; None if no penalty asks for them."""
    if request.sampling.repetition_penalty is None:
        return None
    none = jnp.zeros(size, bool)
    return jax.vmap(lambda tokens, open: none.at[tokens].max(~open))(canvas.tokens, canvas.open)
