"""Draft model: a smaller language model writes the next few tokens, one forward pass each.

Every draft token is what the draft model itself would emit there with the noise of that position,
which is also the noise the target's own token is drawn with: also when sampling, two models that
agree on the law agree on the token.

Exactness: L0 under sample_match. Cost: up to `num_draft` forward passes of the draft model per
step, and its own cache of keys and values.
Source: drafting with a smaller model, arXiv:2211.17192 section 2; differs: noise shared with the
target in place of the accept-reject rule.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.sampling import noise
from jaxdecode.trees import chain, draft_lm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: most draft tokens per step.
        min_prob: a draft token to which the draft model gives less than this is not proposed, and
            ends the draft; 0 always drafts num_draft tokens.
    """

    num_draft: int = 4
    min_prob: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_draft", self.num_draft, low=1)
        checks.number("min_prob", self.min_prob, "a number in [0, 1]", lambda x: 0 <= x <= 1)


def make(config: Config, models: Models) -> Drafter:
    """The drafter; its state is the draft model's cache."""
    # Without min_prob a row drafts all or, at its end, nearly nothing.
    widths = chain.widths(config.num_draft) if config.min_prob else (1, config.num_draft + 1)
    drafter = drafting(draft_lm.bind(models), config.num_draft, config.min_prob)
    return drafter._replace(widths=widths)


def drafting(draft: draft_lm.DraftModel, num_draft: int, min_prob: float = 0.0) -> Drafter:
    """The drafter whose chains are what `draft` would emit with the noise of each position."""

    def propose(weights, state, request, canvas, view):
        del view

        def draw(scores, position):
            size = draft.vocab_size
            gumbel = draft_lm.gumbel(request, position, purpose=noise.TOKEN, size=size)
            token = jnp.argmax(scores + gumbel, axis=-1).astype(jnp.int32)
            return draft_lm.Drawn(token, _confident(scores, token, min_prob))

        drawn, state = draft_lm.draft_chain(
            draft, weights, state, request, canvas, num_draft=num_draft, draw=draw
        )
        return chain.propose(canvas, drawn.tokens, drawn.valid), state

    return Drafter(
        init=draft_lm.starting(draft),
        propose=propose,
        update=draft_lm.keep,
        widths=(1, num_draft + 1),
        max_depth=num_draft,
    )


def _confident(scores, token, min_prob):
    if min_prob == 0:
        return jnp.ones_like(token, bool)
    chosen = jnp.take_along_axis(scores, token[:, None], axis=-1)[:, 0]
    return jnp.exp(chosen - jax.nn.logsumexp(scores, axis=-1)) >= min_prob
