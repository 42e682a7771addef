"""Replays: a model fills the blocks of texts that are known, and what it shows is written down.

Commit rules are learned from these. The texts are what the model says itself, decoded greedily with
one slot per step and the same blocks (`jaxdecode distill`): they are what a rule should arrive at.
Which slots a pass decides is the replay's policy; they always take the text's own token, so a
replay ends at the text. As in decoding, a block is filled when all before it is, and all after it
is masked; of a model with blocks of its own all are filled at once, for none sees those after it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core import ops
from jaxdecode.core.types import pytree
from jaxdecode.training import denoising, losses, probed
from jaxdecode.training.objective import Batch


class Blocks(NamedTuple):
    """Which blocks the tokens of texts belong to.

    Attributes:
        number: of a token's block in its row, rising.
        slot: the token's place in its block.
        inside: whether it belongs to a block.
        learned: whether it is filled.
    """

    number: Int[Array, "B T"]
    slot: Int[Array, "B T"]
    inside: Bool[Array, "B T"]
    learned: Bool[Array, "B T"]


@pytree
class Trace:
    """What the model showed of slots, pass by pass of their block; zeros past the last pass.

    Attributes:
        confidence: probability of the likeliest token; of a decided slot, of its own.
        entropy: of the law, in nats.
        margin: between the two likeliest tokens.
        open: undecided slots.
        right: undecided slots whose likeliest token is the text's.
    """

    confidence: Float[Array, "*B"]
    entropy: Float[Array, "*B"]
    margin: Float[Array, "*B"]
    open: Bool[Array, "*B"]
    right: Bool[Array, "*B"]


# From what a pass shows of the blocks that are filled now to the slots that it decides.
Policy = Callable[[Trace, Blocks], Bool[Array, "B T"]]


class Lessons(NamedTuple):
    """A trace block by block, as a commit rule sees it: G blocks of W slots in S passes.

    Attributes:
        trace: arrays `[B, G, S, W]`; confidence is 1 where there is no slot.
        exists: slots that there are.
        passes: passes that took place.
    """

    trace: Trace
    exists: Bool[Array, "B G W"]
    passes: Bool[Array, "B G S"]


def blocks(asked: denoising.Setting, batch: Batch, size: int) -> Blocks:
    """Blocks of `size` tokens as decoding lays them: from the beginning of each answer on, or, of a
    model with blocks of its own, of each text.
    """
    learned = denoising.learned(batch, asked.denoiser.shifted) > 0
    if asked.denoiser.block:
        number = denoising.groups(batch, size)
        return Blocks(number, batch.positions % size, batch.segments > 0, learned)
    index = jnp.arange(learned.shape[1])
    before = jnp.pad(learned[:, :-1], ((0, 0), (1, 0)))
    new_text = jnp.diff(batch.segments, axis=1, prepend=-1) != 0
    begins = learned & (~before | new_text)
    slot = (index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)) % size
    number = jnp.cumsum(learned & (slot == 0), axis=1) - 1
    return Blocks(jnp.maximum(number, 0), slot, learned, learned)


def right_ones(seen: Trace, blocks: Blocks) -> Bool[Array, "B T"]:
    """Every slot whose likeliest token is the text's; where there is none, the whole block.

    What a rule that knew the text would do (arXiv:2509.25188 section 3).
    """
    some = per_block(jax.ops.segment_max, seen.right.astype(jnp.int32), blocks.number) > 0
    return seen.right | (seen.open & ~some)


def surest(seen: Trace, blocks: Blocks) -> Bool[Array, "B T"]:
    """The slot of the likeliest candidate, one per block: what `llada` decides."""
    return foremost(seen.confidence, seen.open, blocks)


def foremost(
    score: Float[Array, "B T"], open: Bool[Array, "B T"], blocks: Blocks
) -> Bool[Array, "B T"]:
    """The open slot of the largest score, which is not negative, in every block that has one."""
    index = jnp.arange(open.shape[1])
    score = jnp.where(open, score, -1.0)
    is_best = open & (score == per_block(jax.ops.segment_max, score, blocks.number))
    place = jnp.where(is_best, index, index.size)
    return is_best & (place == per_block(jax.ops.segment_min, place, blocks.number))


def replay(asked: denoising.Setting, params: Any, batch: Batch, size: int, policy: Policy) -> Trace:
    """Fills the answers of texts block by block; arrays `[B, T, S]` with S = `size` passes.

    Args:
        asked: how the model is asked.
        params: its parameters.
        batch: texts.
        size: tokens of a block.
        policy: decides at least one slot of every block that has an undecided one.
    """
    laid = blocks(asked, batch, size)

    def fill(carry):
        open, turn, trace = carry
        active = _active(asked, batch, laid, open)
        seen = _look(asked, params, batch, open, active)
        now = active[..., None] & (jnp.arange(size) == turn[..., None])
        kept = jax.tree.map(lambda old, new: jnp.where(now, new[..., None], old), trace, seen)
        return open & ~(policy(seen, laid) & active), turn + active, kept

    shape = (*batch.tokens.shape, size)
    numbers = {name: jnp.zeros(shape) for name in ("confidence", "entropy", "margin")}
    nothing = Trace(**numbers, open=jnp.zeros(shape, bool), right=jnp.zeros(shape, bool))
    start = laid.learned, jnp.zeros_like(batch.tokens), nothing
    return jax.lax.while_loop(lambda carry: carry[0].any(), fill, start)[2]


def _active(
    asked: denoising.Setting, batch: Batch, laid: Blocks, open: Bool[Array, "B T"]
) -> Bool[Array, "B T"]:
    """Tokens of the blocks that are filled now: the first undecided one of each text."""
    last = jnp.iinfo(jnp.int32).max
    number = jnp.where(open, laid.number, last)
    group = laid.number if asked.denoiser.block else batch.segments
    first = per_block(jax.ops.segment_min, number, group)
    return laid.inside & (first < last) & (laid.number == first)


def _look(
    asked: denoising.Setting,
    params: Any,
    batch: Batch,
    open: Bool[Array, "B T"],
    active: Bool[Array, "B T"],
) -> Trace:
    """What one pass shows of the blocks that are filled now, all undecided tokens being masked."""

    def read(states, tokens, open, active):
        scores = denoising.scores(asked, params, states)
        law = jax.nn.log_softmax(scores)
        best, probs = jax.lax.top_k(law, 2)[0], jnp.exp(law)
        own = jnp.take_along_axis(law, tokens[..., None], axis=-1)[..., 0]
        return Trace(
            confidence=jnp.exp(jnp.where(open, best[..., 0], own)),
            entropy=-jnp.where(probs > 0, probs * law, 0.0).sum(-1),
            margin=jnp.exp(best[..., 0]) - jnp.exp(best[..., 1]),
            open=open & active,
            right=(scores.argmax(-1) == tokens) & open & active,
        )

    hidden = denoising.states(asked, params, batch, open)
    return losses.over_tokens(read, hidden, batch.tokens, open, active)


def lessons(trace: Trace, laid: Blocks, size: int, key: Array) -> Lessons:
    """As many blocks of each row as fit into it side by side; drawn, where short answers make more.

    Args:
        trace: of a replay.
        laid: its blocks.
        size: tokens of a block.
        key: of the draw.
    """
    width = laid.slot.shape[1]
    begins = laid.inside & (laid.slot == 0)
    num = -(-width // size)
    first = probed.choose(begins.astype(jnp.float32), key, num)
    where = first[..., None] + jnp.arange(size)
    own = ops.taken(laid.number, jnp.minimum(where, width - 1))
    exists = (where < width) & (own == own[..., :1]) & ops.taken(begins, first)[..., None]
    where = jnp.minimum(where, width - 1)
    exists &= ops.taken(laid.inside, where)

    def lay(array: Array, empty: Any) -> Array:
        found = jnp.where(exists[..., None], ops.taken(array, where), empty)
        return jnp.swapaxes(found, -1, -2)

    found = Trace(
        confidence=lay(trace.confidence, 1.0),
        entropy=lay(trace.entropy, 0.0),
        margin=lay(trace.margin, 0.0),
        open=lay(trace.open, False),
        right=lay(trace.right, False),
    )
    return Lessons(found, exists, found.open.any(-1))


def per_block(reduce: Callable[..., Array], values: Array, number: Array) -> Array:
    """A segment reduction within each row, given to every token of the segment."""
    segments = values.shape[1] + 1

    def row(values, number):
        return reduce(values, number, num_segments=segments)[number]

    return jax.vmap(row)(values, number)
