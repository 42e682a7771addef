"""Several texts per step, of which a trained energy picks one.

As `energy`, but E comes from a network that was trained to tell the target's draws from texts
(`training/objectives/edlm_nce.py`): where it has learned all there is, E is log q - log p of what a
window is to hold given what is known, with the law q of draws and the law p of texts.

Exactness: L3; with one candidate it is `denoise`, and with an untrained energy it has its law.
Cost: k passes of a small network over the window per step, which are not among `tokens_forwarded`.
The energy is of draws at temperature 1; of others it knows nothing.
Source: arXiv:2410.21357 sections 3 and 4 (energy by noise contrastive estimation).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode.core.commit import slots
from jaxdecode.core.protocols import Model, Models, TargetOutput, Verifier, Weights
from jaxdecode.core.types import Canvas, Window
from jaxdecode.errors import InputError
from jaxdecode.heads import edlm_nce
from jaxdecode.models import extra
from jaxdecode.sampling import confidence
from jaxdecode.verifiers import denoise, energy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(energy.Config):
    """Options: those of `energy`."""


def make(config: Config, models: Models) -> Verifier:
    """The verifier.

    Raises:
        InputError: the target's embeddings cannot be read.
    """
    if models.target.target.embed is None:
        raise InputError(
            "verifier learned_energy reads embeddings, and this model has none; use method mdlm."
        )
    if config.num_candidates == 1:
        return denoise.make(denoise.Config(), models)
    energies = functools.partial(_energies, models.target)
    verify = functools.partial(energy.verify, config, energies, energy.log_weights)
    return Verifier(verify=verify, windows=True)


def _energies(
    model: Model,
    weights: Weights,
    canvas: Canvas,
    window: Window,
    texts: energy.Texts,
    output: TargetOutput,
) -> Float[Array, "B k"]:
    """One text after the other, so that the rows of one are in memory at a time."""
    hidden = jnp.take_along_axis(output.hidden, window.scored[:, :, None], axis=1)
    held = confidence.taken(jnp.where(canvas.open, window.mask_token, canvas.tokens), window)
    places = slots(window)
    exists = places < canvas.end[:, None]
    program = extra.windows(places, exists.astype(jnp.int32))
    embed = model.target.embed
    assert embed is not None

    def one(tokens: Int[Array, "B W"]) -> Float[Array, "B"]:
        text = embed(weights.target, jnp.where(window.open, tokens, held))
        parts = edlm_nce.parts(model, weights.heads, hidden, text, program)
        return jnp.where(exists, parts, 0.0).sum(-1) / jnp.maximum(exists.sum(-1), 1)

    return jax.lax.map(one, jnp.moveaxis(texts.tokens, 1, 0)).T
