"""Suffix decoding: copy the continuation that followed the current suffix most often.

The row is its own suffix tree: all places where the last p tokens occurred before, and what came
after them. A continuation's probability is the share of those places that went on with it, its
score the sum of the probabilities of its prefixes: the draft tokens that the counts expect to be
accepted. The best score over a few match lengths p wins. A store of earlier rows' outputs is
searched in the same way if there is one, and the better of the two drafts is taken.

Exactness: L0 under sample_match; counts are estimates and never enter a verdict. Cost: a comparison
of the canvas with itself per matching token, and `num_places`^2 comparisons of continuations.
Source: arXiv:2411.04975. Differs: arrays in place of trees; counts of the `num_places` longest and
latest matches; all continuations compete, where the paper follows the likeliest child; by default
the match length does not bound the draft (a bound saves width, and costs accepted tokens).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import pytree
from jaxdecode.drafters import prompt_lookup
from jaxdecode.trees import chain

# Tokens of suffix that are compared, and the match lengths whose counts compete. Between two of
# them few places differ.
MAX_MATCH = 64
LENGTHS = (64, 32, 16, 8, 6, 5, 4, 3, 2, 1)
# Between two texts of the store; no token.
GAP = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: most draft tokens per step.
        max_spec_factor: draft tokens per matching token; with `max_spec_offset` the bound on a
            draft's length.
        max_spec_offset: draft tokens besides those of `max_spec_factor`.
        min_token_prob: a draft ends before the token whose probability by the counts, its
            ancestors' included, is below this.
        min_match: shortest suffix that counts as a match.
        num_places: places whose continuations are counted.
        store: tokens of earlier outputs that are kept for later batches; 0 keeps none.
    """

    num_draft: int = 10
    max_spec_factor: float = 1.0
    max_spec_offset: float = 10.0
    min_token_prob: float = 0.1
    min_match: int = 1
    num_places: int = 16
    store: int = 0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_draft", self.num_draft, low=1)
        checks.number("max_spec_factor", self.max_spec_factor, ">= 0", lambda x: x >= 0)
        checks.number("max_spec_offset", self.max_spec_offset, "any number", lambda x: True)
        share = "between 0 and 1"
        checks.number("min_token_prob", self.min_token_prob, share, lambda x: 0 <= x <= 1)
        checks.integer("min_match", self.min_match, low=1, high=MAX_MATCH)
        checks.integer("num_places", self.num_places, low=1, high=1024)
        checks.integer("store", self.store, low=0)


@pytree
class State:
    """Earlier texts, and what it takes to add this batch's at its end.

    Attributes:
        store: outputs of earlier batches, oldest first; GAP between texts and where empty.
        start: first slot of each row's output.
        length: last decided slot of each row.
        tokens: the canvas.
    """

    store: Int[Array, "S"]
    start: Int[Array, "B"]
    length: Int[Array, "B"]
    tokens: Int[Array, "B L"]


class Draft(NamedTuple):
    """A copied continuation.

    Attributes:
        tokens: the tokens that followed the match.
        valid: which of them exist.
        matched: tokens of the suffix that matched at all places that were counted.
        score: draft tokens that the counts expect to be accepted.
    """

    tokens: Int[Array, "M"]
    valid: Bool[Array, "M"]
    matched: Int[Array, ""]
    score: Float[Array, ""]


def make(config: Config, models: Models) -> Drafter:
    """The drafter; without a store it has no state."""
    del models

    def init(weights, request, canvas, view, memory):
        del weights, request, view
        if not config.store:
            return ()
        store = np.full(config.store, GAP, np.int32) if memory is None else memory
        # Copies: the loop is given the buffers of canvas and state, and keeps both.
        return State(
            store=jnp.array(store),
            start=canvas.length + 1,
            length=jnp.copy(canvas.length),
            tokens=jnp.copy(canvas.tokens),
        )

    def propose(weights, state, request, canvas, view):
        del weights, request, view
        store = state.store if config.store else None
        draft = jax.vmap(lambda tokens, length: search(tokens, length, store, config))(
            canvas.tokens, canvas.length
        )
        return chain.propose(canvas, draft.tokens, draft.valid), state

    def update(weights, state, request, canvas, proposal, verdict, output):
        del weights, request, proposal, verdict, output
        if not config.store:
            return state
        return dataclasses.replace(state, length=canvas.length, tokens=canvas.tokens)

    return Drafter(
        init=init,
        propose=propose,
        update=update,
        remember=_remember if config.store else None,
        widths=chain.widths(config.num_draft),
        max_depth=config.num_draft,
    )


def search(
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    store: Int[Array, "S"] | None,
    config: Config,
) -> Draft:
    """The better of the drafts from the row itself and from the store."""
    own = lookup(tokens, length, tokens, length, config)
    if store is None:
        return own
    other = lookup(store, jnp.int32(store.shape[0] - 1), tokens, length, config)
    return jax.tree.map(lambda a, b: jnp.where(other.score > own.score, b, a), own, other)


def lookup(
    text: Int[Array, "T"],
    last: Int[Array, ""],
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    config: Config,
) -> Draft:
    """The best continuation in a text of the suffix of one row.

    Args:
        text: where to look.
        last: its last slot that is filled.
        tokens: the row.
        length: slot of the row's last committed token.
        config: options.
    """
    size = text.shape[0]
    slot = jnp.arange(size, dtype=jnp.int32)
    # A place counts only if a token follows it.
    among = (slot < last) & (jnp.roll(text, -1) != GAP)
    run = prompt_lookup.match_lengths(text, among, tokens, length, limit=MAX_MATCH)
    rank, place = jax.lax.top_k(run * size + slot, min(config.num_places, size))
    run = rank // size
    source = place[:, None] + 1 + jnp.arange(config.num_draft, dtype=jnp.int32)
    following = text[jnp.minimum(source, size - 1)]
    exists = jnp.cumprod((source <= last) & (following != GAP), axis=1).astype(bool)
    member = run >= jnp.maximum(np.asarray(LENGTHS), config.min_match)[:, None]
    probs = _shares(following, exists, member)
    # All places of a cohort match at least this much; it decides how far the draft may go.
    matched = jnp.min(jnp.where(member, run, MAX_MATCH), axis=1)
    bound = jnp.floor(config.max_spec_factor * matched + config.max_spec_offset)
    keep = jnp.arange(config.num_draft) < bound[:, None, None]
    keep &= (probs >= config.min_token_prob) & (probs > 0)
    score = jnp.sum(jnp.where(keep, probs, 0.0), axis=2)
    best = jnp.argmax(score)
    cohort, row = jnp.unravel_index(best, score.shape)
    return Draft(following[row], keep[cohort, row], matched[cohort], score[cohort, row])


def _shares(
    following: Int[Array, "W M"], exists: Bool[Array, "W M"], member: Bool[Array, "G W"]
) -> Float[Array, "G W M"]:
    """Probability of every prefix of every member's continuation within its group of places.

    The factor of a token is the number of places that went on with it after the same prefix, out
    of those that went on at all.
    """
    equal = (following[:, None] == following[None]) & exists[:, None] & exists[None]
    same = jnp.cumprod(equal, axis=2)
    prefix = jnp.pad(same, ((0, 0), (0, 0), (1, 0)), constant_values=1)[..., :-1]
    weight = member.astype(jnp.float32)

    def count(pairs):
        return jnp.einsum("gv,vwm->gwm", weight, pairs.astype(jnp.float32))

    agree, went_on = count(same), count(prefix * exists[:, None])
    share = jnp.where(agree > 0, agree / jnp.maximum(went_on, 1.0), 0.0)
    return jnp.cumprod(share, axis=2) * weight[:, :, None]


def _remember(state: State) -> np.ndarray:
    """The store with this batch's outputs at its end; the oldest tokens leave."""
    store, start, length, tokens = jax.device_get(
        (state.store, state.start, state.length, state.tokens)
    )
    parts = [store]
    for row, first, last in zip(tokens, start, length, strict=True):
        if last >= first:
            parts += [[GAP], row[first : last + 1]]
    return np.concatenate(parts)[-len(store) :].astype(np.int32)
