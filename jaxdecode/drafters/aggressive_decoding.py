"""Input-guided aggressive decoding: copy the prompt from a pointer on, while the target agrees.

The output is expected to be an edited copy of the source. The draft is the source from the pointer
on; the pointer moves with every copied token. When the target departs from the source, plain steps
follow until the last tokens of the output occur exactly once in the source: the pointer is set
behind that place and copying resumes. Grammar correction, rewriting and edits of code are such
tasks.

Exactness: L0 under sample_match. Cost: `max_ngram` comparisons of the source with the output.
Source: arXiv:2205.10350, section 3.1 (input-guided). Differs: the source is the prompt of a
decoder-only model, or its last tokens; the target's correction counts as the first plain step.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import pytree
from jaxdecode.drafters import prompt_lookup
from jaxdecode.trees import chain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: draft tokens per step.
        max_ngram: longest suffix of the output that is looked for to resume.
        min_ngram: shortest one.
        num_source: tokens at the end of the prompt that are the source; 0 takes all. The first
            draft is their beginning.
        skip_source: tokens at the very end of the prompt that do not belong to the source, such as
            those with which a chat template hands over.
    """

    num_draft: int = 10
    max_ngram: int = 3
    min_ngram: int = 1
    num_source: int = 0
    skip_source: int = 0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_draft", self.num_draft, low=1)
        checks.integer("min_ngram", self.min_ngram, low=1)
        checks.integer("max_ngram", self.max_ngram, low=self.min_ngram)
        checks.integer("num_source", self.num_source, low=0)
        checks.integer("skip_source", self.skip_source, low=0)


@pytree
class State:
    """Where each row copies from.

    Attributes:
        pointer: next slot of the source to copy; -1 while the row takes plain steps.
        first: first slot of the source.
        stop: slot behind the source's last.
        start: first slot of the output.
        length: last decided slot when the pointer was set.
    """

    pointer: Int[Array, "B"]
    first: Int[Array, "B"]
    stop: Int[Array, "B"]
    start: Int[Array, "B"]
    length: Int[Array, "B"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter."""
    del models

    def init(weights, request, canvas, view, memory):
        del weights, request, view, memory
        start = canvas.length + 1
        stop = jnp.maximum(start - config.skip_source, 0)
        first = jnp.maximum(stop - (config.num_source or canvas.tokens.shape[1]), 0)
        pointer = jnp.where(first < stop, first, -1)
        # A copy: the loop is given the buffers of canvas and state, and keeps both.
        length = jnp.copy(canvas.length)
        return State(pointer=pointer, first=first, stop=stop, start=start, length=length)

    def propose(weights, state, request, canvas, view):
        del weights, request, view
        draft, valid = jax.vmap(lambda row, tokens: _draft(row, tokens, config.num_draft))(
            state, canvas.tokens
        )
        return chain.propose(canvas, draft, valid), state

    def update(weights, state, request, canvas, proposal, verdict, output):
        del weights, request, proposal, verdict, output
        return jax.vmap(lambda row, tokens, length: follow(row, tokens, length, config))(
            state, canvas.tokens, canvas.length
        )

    return Drafter(
        init=init,
        propose=propose,
        update=update,
        widths=chain.widths(config.num_draft),
        max_depth=config.num_draft,
    )


def _draft(
    row: State, tokens: Int[Array, "L"], num_draft: int
) -> tuple[Int[Array, "M"], Bool[Array, "M"]]:
    source = row.pointer + jnp.arange(num_draft, dtype=jnp.int32)
    valid = (row.pointer >= 0) & (source < row.stop)
    return tokens[jnp.clip(source, 0, tokens.shape[0] - 1)], valid


def follow(row: State, tokens: Int[Array, "L"], length: Int[Array, ""], config: Config) -> State:
    """The state after the tokens up to slot `length` were decided, at most num_draft + 1 new."""
    index = jnp.arange(config.num_draft + 1, dtype=jnp.int32)
    num_new = length - row.length

    def at(slot):
        return tokens[jnp.clip(slot, 0, tokens.shape[0] - 1)]

    copied = at(row.length + 1 + index) == at(row.pointer + index)
    copied &= row.pointer + index < row.stop
    copying = (row.pointer >= 0) & (copied | (index >= num_new)).all()
    return dataclasses.replace(
        row,
        pointer=jnp.where(copying, row.pointer + num_new, resume(row, tokens, length, config)),
        length=length,
    )


def resume(
    row: State, tokens: Int[Array, "L"], length: Int[Array, ""], config: Config
) -> Int[Array, ""]:
    """The slot behind the only place in the source with the output's last tokens, or -1.

    A longer suffix has no other place than a shorter one, so any that occurs once will do.
    """
    slot = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    among = (slot >= row.first) & (slot < row.stop)
    run = prompt_lookup.match_lengths(tokens, among, tokens, length, limit=config.max_ngram)
    # Neither side may reach out of its own text.
    run = jnp.minimum(run, jnp.minimum(slot - row.first + 1, length - row.start + 1))
    sizes = jnp.arange(config.min_ngram, config.max_ngram + 1, dtype=jnp.int32)
    found = run >= sizes[:, None]
    unique = found.sum(axis=1) == 1
    place = jnp.argmax(found, axis=1).astype(jnp.int32)
    return jnp.max(jnp.where(unique, place + 1, -1))
