"""Forced tokens: where the grammar allows one continuation only, it is the draft.

The names of a schema's fields and the punctuation between them are known before the model is
asked. Where nothing is forced, the draft is copied as by `prompt_lookup`: the values of a structure
often stand in the prompt. Without a grammar it is `prompt_lookup`.

Exactness: L0 under sample_match: a forced token is checked like any other draft. Cost: one call of
the host, microseconds per row, and prompt lookup.
Source: ours; that structure needs no model is an old idea (github.com/guidance-ai/llguidance).
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdecode.core import grammar
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.drafters import none, prompt_lookup
from jaxdecode.trees import chain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(prompt_lookup.Config):
    """Options: those of prompt_lookup; `num_draft` bounds forced drafts too."""


def make(config: Config, models: Models) -> Drafter:
    """The drafter; it has no state and no parameters."""
    del models

    def propose(weights, state, request, canvas, view):
        del weights, view
        tokens, valid = grammar.forced(request, canvas, config.num_draft)
        copied = jax.vmap(lambda tokens, length: prompt_lookup.lookup(tokens, length, config))(
            canvas.tokens, canvas.length
        )
        some = valid[:, :1]
        tokens = jnp.where(some, tokens, copied.tokens)
        return chain.propose(canvas, tokens, jnp.where(some, valid, copied.valid)), state

    widths = chain.widths(config.num_draft)
    return none.stateless(propose, widths=widths, max_depth=config.num_draft)
