"""Prompt lookup: copy what followed the latest earlier occurrence of the current suffix.

The suffix of the last n tokens is looked for among the row's own tokens, the longest n first and
the latest place first; the tokens after that place are the draft. Summaries, answers about a given
text and edits of code repeat their input, and there it pays.

Exactness: L0 under sample_match. Cost: `max_ngram` comparisons of the canvas with itself per step.
Source: github.com/apoorvumang/prompt-lookup-decoding; differs: the latest place wins, and a match
near the end of the row gives a short draft instead of none.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.drafters import none
from jaxdecode.trees import chain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: draft tokens per step.
        max_ngram: longest suffix that is looked for.
        min_ngram: shortest suffix that counts as a match.
    """

    num_draft: int = 10
    max_ngram: int = 3
    min_ngram: int = 1

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_draft", self.num_draft, low=1)
        checks.integer("min_ngram", self.min_ngram, low=1)
        checks.integer("max_ngram", self.max_ngram, low=self.min_ngram)


def make(config: Config, models: Models) -> Drafter:
    """The drafter; it has no state and no parameters."""
    del models

    def propose(weights, state, request, canvas, view):
        del weights, request, view
        search = jax.vmap(lambda tokens, length: lookup(tokens, length, config))
        draft, valid = search(canvas.tokens, canvas.length)
        return chain.propose(canvas, draft, valid), state

    widths = chain.widths(config.num_draft)
    return none.stateless(propose, widths=widths, max_depth=config.num_draft)


def lookup(
    tokens: Int[Array, "L"], length: Int[Array, ""], config: Config
) -> tuple[Int[Array, "M"], Bool[Array, "M"]]:
    """The draft of one row whose last committed token is in slot `length`."""
    size = tokens.shape[0]
    slot = jnp.arange(size, dtype=jnp.int32)
    # run[j]: tokens that the text up to slot j and the text up to `length` have in common at
    # their ends, at most max_ngram.
    run = jnp.zeros(size, jnp.int32)
    alive = slot < length
    for back in range(config.max_ngram):
        wanted = tokens[jnp.maximum(length - back, 0)]
        alive &= (jnp.roll(tokens, back) == wanted) & (slot >= back)
        run += alive
    best = jnp.argmax(run * size + slot * (run > 0)).astype(jnp.int32)
    source = best + 1 + jnp.arange(config.num_draft, dtype=jnp.int32)
    valid = (run[best] >= config.min_ngram) & (source <= length)
    return tokens[jnp.minimum(source, size - 1)], valid
