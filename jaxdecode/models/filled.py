"""One pass of a model that fills slots over whole texts, nothing cached: the law of every slot."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Target
from jaxdecode.models.config import Denoiser


def laws(
    params: object,
    tokens: Int[Array, "B T"],
    length: Int[Array, "B"],
    masked: Bool[Array, "B T"],
    *,
    target: Target,
    denoiser: Denoiser,
    slots: slice = slice(None),
) -> Float[Array, "B S V"]:
    """Log-probabilities of some slots, all by default, of texts of which others are masked."""
    entering = jnp.where(masked, denoiser.mask_token, tokens)
    seen = program(denoiser, length, tokens.shape[1])
    hidden = target.forward(params, entering, seen, None).hidden
    if denoiser.shifted:
        hidden = jnp.roll(hidden, 1, axis=1)
    scores = target.logits(params, hidden[:, slots]).at[..., denoiser.mask_token].set(-jnp.inf)
    return jax.nn.log_softmax(scores)


def program(denoiser: Denoiser, length: Int[Array, "B"], width: int) -> MaskProgram:
    """Mask of a pass over whole texts, as the model sees them."""
    batch = length.shape[0]
    return MaskProgram(
        cached=jnp.zeros(batch, jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (batch, width)),
        num_new=length,
        rule="block_causal" if denoiser.block else "bidirectional",
        block=denoiser.block,
    )
