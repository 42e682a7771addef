"""Draws that lean towards texts of an attribute, by the gradient of a classifier.

The law wanted is that of the target's draws times c(y | text)^s: texts count more where a
classifier finds the attribute y likely. Weighed exactly, every candidate token of every slot would
have to be classified; to first order in what the undecided slots hold, around the target's own law,

    log c(y | text with v in slot i) = constant + g(v),

with one gradient g. So scores become scores + s g, before temperature and filters.

Exactness: L3; with s = 0 it is `denoise`. With s = 1 and slots that the target finds independent,
the law is that of texts with the attribute up to the second order of log c.
Cost: two products of the window's laws and of one vector with the classifier's table.
Source: arXiv:2505.14455 (classifier guidance with a cheap approximation; the expansion is ours).
Only the slots of the window and what has been filled before it are classified: not the prompt.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.core.protocols import Models, TargetOutput, Verifier, Weights
from jaxdecode.core.types import Candidates, Canvas, Request, Window
from jaxdecode.errors import InputError
from jaxdecode.heads import ctrldiff
from jaxdecode.trees import walk
from jaxdecode.verifiers import denoise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        attribute: y, the class that texts should have, from 0.
        strength: s, >= 0; 0 does not guide.
    """

    attribute: int = 0
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("attribute", self.attribute, low=0)
        checks.number("strength", self.strength, "a number >= 0", lambda x: x >= 0)


def make(config: Config, models: Models) -> Verifier:
    """The verifier; at its first step it refuses attributes that the classifier does not know."""
    if not config.strength:
        return denoise.make(denoise.Config(), models)
    return Verifier(verify=functools.partial(_verify, config), windows=True)


def _verify(
    config: Config,
    weights: Weights,
    request: Request,
    canvas: Canvas,
    proposal: Window,
    output: TargetOutput,
) -> Candidates:
    known = ctrldiff.num_classes(weights.heads)
    if config.attribute >= known:
        raise InputError(
            f"attribute={config.attribute} is not known: these heads tell {known} classes apart, "
            f"0 to {known - 1}."
        )
    assert output.logits is not None
    lean = jax.vmap(functools.partial(_lean, config.attribute, weights.heads))(
        canvas, proposal, output.logits
    )
    guided = output.logits + config.strength * lean[:, None]
    return walk.by_row(denoise.candidates, request, canvas, proposal, guided, output.allowed)


def _lean(
    wanted: int, params: dict, canvas: Canvas, window: Window, logits: Float[Array, "W V"]
) -> Float[Array, "V"]:
    """What is added to the scores of one row."""
    table = params["table"].astype(jnp.float32)
    law = jax.nn.softmax(logits.at[:, window.mask_token].set(-jnp.inf))
    decided = (~canvas.open & (canvas.commit_step >= 0)).astype(jnp.float32)
    open = window.open.astype(jnp.float32)
    total = decided @ table[canvas.tokens] + (open @ law) @ table
    count = decided.sum() + open.sum()
    return ctrldiff.pull(params, total / jnp.maximum(count, 1), count, wanted)
