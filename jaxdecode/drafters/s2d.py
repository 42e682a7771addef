"""Nested exits in a draft model (S2D): its first layers write a draft token where they are sure.

The draft model is read after some of its layers with its own final norm and head. The smallest of
these exits whose likeliest token has at least `confidence` probability writes the token, per row
and token; where none is sure, all layers do. A draft model trained at all its exits serves targets
of several sizes this way.

Exactness: L0 under sample_match; drafts are drawn with the noise of their positions.
Cost: that of draft_model and its head once per exit and token. All layers always run: rows choose
apart, and later tokens need the keys and values of every layer. So an early exit saves nothing
here; it only changes which token is drafted.
Source: arXiv:2407.01955; differs: exits, threshold and the missing saving are ours, since the paper
says only that the smallest confident sub-model drafts.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models, Target
from jaxdecode.drafters import draft_model
from jaxdecode.errors import InputError
from jaxdecode.trees import draft_lm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: draft tokens per step.
        confidence: probability from which an exit counts as sure; 0 always takes the first exit,
            above 1 all layers.
        exits: layer counts of the early exits; None takes 1/2 and 3/4 of the draft model's.
    """

    num_draft: int = 4
    confidence: float = 0.85
    exits: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_draft", self.num_draft, low=1)
        checks.number("confidence", self.confidence, "a number >= 0", lambda x: x >= 0)
        for last in self.exits or ():
            checks.integer("exits", last, low=1)


def make(config: Config, models: Models) -> Drafter:
    """The drafter; its state is the draft model's cache."""
    whole = draft_lm.bind(models)
    exits = exits_of(config.exits, whole.model.config.num_layers)
    target = nested(whole.model.target, exits, config.confidence)
    draft = whole._replace(model=whole.model._replace(target=target))
    # The prompt needs keys and values only, not what its exits would say.
    return draft_model.drafting(draft, config.num_draft)._replace(init=draft_lm.starting(whole))


def exits_of(exits: tuple[int, ...] | None, num_layers: int) -> tuple[int, ...]:
    """Layer counts of a model's early exits, ascending.

    Args:
        exits: those asked for; None for 1/2 and 3/4 of the layers.
        num_layers: of the model.

    Raises:
        InputError: there are fewer layers.
    """
    halves = (max(1, num_layers // 2), max(1, num_layers * 3 // 4))
    found = tuple(sorted({*(exits or halves)}))
    if found[-1] > num_layers:
        raise InputError(f"exits={found} go past the draft model's {num_layers} layers.")
    return found


def nested(target: Target, exits: tuple[int, ...], confidence: float) -> Target:
    """The model whose hidden states are, row by row, those of the smallest exit that is sure."""
    names = tuple(f"layer.{last - 1}" for last in exits)
    assert target.norm is not None
    norm = target.norm

    def forward(params, tokens, mask, cached, taps=()):
        output = target.forward(params, tokens, mask, cached, names + taps)
        hidden = output.hidden
        for name in reversed(names):
            early = norm(params, output.taps[name])
            scores = target.logits(params, early)
            sure = jnp.exp(scores.max(-1) - jax.nn.logsumexp(scores, axis=-1)) >= confidence
            hidden = jnp.where(sure[..., None], early, hidden)
        return dataclasses.replace(output, hidden=hidden)

    return target._replace(forward=forward)
