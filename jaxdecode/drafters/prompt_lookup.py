"""Prompt lookup: copy what followed the latest earlier occurrence of the current suffix.

The suffix of the last n tokens is looked for among the row's own tokens, the longest n first and
the latest place first; the tokens after that place are the draft. Summaries, answers about a given
text and edits of code repeat their input, and there it pays.

Exactness: L0 under sample_match. Cost: `max_ngram` comparisons of the canvas with itself per step.
Source: github.com/apoorvumang/prompt-lookup-decoding; differs: the latest place wins, and a match
near the end of the row gives a short draft instead of none.
"""

import dataclasses
from typing import NamedTuple

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
        draft = jax.vmap(lambda tokens, length: lookup(tokens, length, config))(
            canvas.tokens, canvas.length
        )
        return chain.propose(canvas, draft.tokens, draft.valid), state

    widths = chain.widths(config.num_draft)
    return none.stateless(propose, widths=widths, max_depth=config.num_draft)


class Draft(NamedTuple):
    """A copied continuation.

    Attributes:
        tokens: the tokens that followed the match.
        valid: which of them exist.
        matched: tokens of the suffix that matched, up to the longest that is looked for.
    """

    tokens: Int[Array, "M"]
    valid: Bool[Array, "M"]
    matched: Int[Array, ""]


def lookup(tokens: Int[Array, "L"], length: Int[Array, ""], config: Config) -> Draft:
    """The draft of one row whose last committed token is in slot `length`."""
    size = tokens.shape[0]
    slot = jnp.arange(size, dtype=jnp.int32)
    run = match_lengths(tokens, slot < length, tokens, length, limit=config.max_ngram)
    best = jnp.argmax(run * size + slot * (run > 0)).astype(jnp.int32)
    source = best + 1 + jnp.arange(config.num_draft, dtype=jnp.int32)
    valid = (run[best] >= config.min_ngram) & (source <= length)
    return Draft(tokens[jnp.minimum(source, size - 1)], valid, run[best])


def match_lengths(
    text: Int[Array, "T"],
    among: Bool[Array, "T"],
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    *,
    limit: int,
) -> Int[Array, "T"]:
    """Tokens that `text` up to each slot and `tokens` up to `length` share at their ends.

    Args:
        text: where to look.
        among: slots to look at; 0 elsewhere. Matches are short, and the search ends with them.
        tokens: the row, whose last committed token is in slot `length`.
        length: that slot.
        limit: longest match that is told from shorter ones.
    """
    slot = jnp.arange(text.shape[0], dtype=jnp.int32)

    def extend(carry):
        back, alive, run = carry
        wanted = tokens[jnp.maximum(length - back, 0)]
        alive &= (jnp.roll(text, back) == wanted) & (slot >= back) & (length >= back)
        return back + 1, alive, run + alive

    def any_left(carry):
        back, alive, _ = carry
        return (back < limit) & alive.any()

    return jax.lax.while_loop(any_left, extend, (jnp.int32(0), among, slot * 0))[2]
