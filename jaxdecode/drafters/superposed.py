"""Superposed decoding: k texts of a prompt from one forward pass per token.

The target is given the sum of the k hypotheses' last tokens, weighted by their probabilities, and
what it returns extends all of them: a beam search that costs what one text costs. All hypotheses
share one row of keys and values per position, so what comes out is an approximation. The canvas
follows the best hypothesis of every step; the texts themselves are in the state.

Exactness: L3; greedy decoding with one hypothesis and no n-grams. Cost: k rows of the embedding and
a top-k per step; with `alpha`, 5 comparisons of each text with itself.
Source: arXiv:2405.18400; differs: n-grams are the row's own instead of a corpus', a context that
does not occur adds nothing, only ends among the best k finish a text, and a row ends when no other
text can become one of the best k.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import Blend, Outputs, Proposal, Superposition, pytree
from jaxdecode.trees import chain, superposition

# Weights of 2-grams to 6-grams; section 4 of the paper.
NGRAM_WEIGHTS = (0.01, 0.04, 0.15, 0.18, 0.12)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(superposition.Config):
    """The options of `trees.superposition`."""


@pytree
class Texts:
    """Hypotheses of a row: slots, log-probabilities of the new tokens, log scores, slots in use."""

    tokens: Int[Array, "B k L"]
    logprob: Float[Array, "B k L"]
    score: Float[Array, "B k"]
    length: Int[Array, "B k"]


@pytree
class State:
    """Hypotheses that go on and finished texts of a row.

    Attributes:
        alive: best first.
        ended: best first.
        length: slot of the pending token, to tell rows that moved from those that were done.
    """

    alive: Texts
    ended: Texts
    length: Int[Array, "B"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter; only verifier `superposed` can use it."""
    size, num = models.target.config.vocab_size, config.num_texts

    def init(weights, request, canvas, view, memory):
        del weights, request, view, memory
        batch, slots = canvas.tokens.shape
        alive = Texts(
            tokens=jnp.broadcast_to(canvas.tokens[:, None], (batch, num, slots)),
            logprob=jnp.zeros((batch, num, slots), jnp.float32),
            score=jnp.full((batch, num), -jnp.inf).at[:, 0].set(0.0),
            length=jnp.broadcast_to(canvas.length[:, None] + 1, (batch, num)),
        )
        empty = jax.tree.map(jnp.zeros_like, alive)
        ended = dataclasses.replace(empty, score=jnp.full((batch, num), -jnp.inf))
        # Copied: the state is donated beside the canvas.
        return State(alive=alive, ended=ended, length=jnp.copy(canvas.length))

    def propose(weights, state, request, canvas, view):
        del weights, request, view
        pending = chain.pending(canvas)
        last = state.length[:, None, None]
        prior = None
        if config.alpha > 0:

            def one(tokens, last):
                return ngram_law(tokens, last, size)

            rows = jax.vmap(one, in_axes=(0, None))
            prior = jax.vmap(rows)(state.alive.tokens, state.length)[:, None]
        score = state.alive.score[:, None]
        blend = Blend(
            tokens=jnp.take_along_axis(state.alive.tokens, last, axis=2)[:, None, :, 0],
            # Finite also where no hypothesis goes on.
            weights=jax.nn.softmax(jnp.maximum(score, jnp.finfo(jnp.float32).min)),
        )
        superposed = Superposition(
            blend=blend, scores=score, ended=state.ended.score[:, None], prior=prior
        )
        zero = jnp.zeros_like(pending)
        return Proposal(
            tokens=pending,
            parent=zero - 1,
            depth=zero,
            valid=jnp.ones_like(pending, bool),
            max_depth=0,
            superposed=superposed,
        ), state

    def update(weights, state, request, canvas, proposal, verdict, output):
        del weights, verdict

        def row(state, length, part, logits):
            extension = superposition.extend(part, logits, request, config)
            return _advance(state, length, extension, logits[0])

        return jax.vmap(row)(state, canvas.length, proposal.superposed, output.logits)

    return Drafter(init=init, propose=propose, update=update, outputs=outputs)


def _advance(
    state: State, length: Int[Array, ""], extension: superposition.Extension, logits: Array
) -> State:
    """A row's state after its step; unchanged if the row was done."""
    slot = state.length + 1
    put = jax.vmap(lambda array, value: array.at[slot].set(value, mode="drop"))
    grown = Texts(
        tokens=put(state.alive.tokens[extension.source], extension.token),
        logprob=put(
            state.alive.logprob[extension.source],
            jax.nn.log_softmax(logits)[extension.token],
        ),
        score=extension.score,
        length=jnp.full_like(extension.token, slot + 1),
    )
    alive = jax.tree.map(lambda array: array[extension.alive], grown)
    finished = dataclasses.replace(grown, score=jnp.where(extension.ends, grown.score, -jnp.inf))
    moved = State(
        alive=dataclasses.replace(alive, score=extension.alive_score),
        ended=_best(state.ended, finished, len(extension.alive)),
        length=length,
    )
    was_live = length > state.length
    return jax.tree.map(lambda new, old: jnp.where(was_live, new, old), moved, state)


def _best(first: Texts, second: Texts, num: int) -> Texts:
    """The `num` texts of the highest scores."""
    both = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), first, second)
    order = jax.lax.top_k(both.score, num)[1]
    return jax.tree.map(lambda array: array[order], both)


@jax.jit
def outputs(state: State) -> Outputs:
    """Texts of all rows, finished or not, in the order of their scores."""
    num = state.alive.score.shape[1]
    best = jax.vmap(lambda row: _best(row.ended, row.alive, num))(state)
    length = jnp.where(jnp.isfinite(best.score), best.length, 0)
    return Outputs(tokens=best.tokens, logprob=best.logprob, length=length)


def ngram_law(tokens: Int[Array, "L"], last: Int[Array, ""], size: int) -> Float[Array, "V"]:
    """What followed the latest 1 to 5 tokens elsewhere in a text that ends in slot `last`."""
    slot = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    match: Bool[Array, "L"] = slot < last
    share = jnp.zeros(tokens.shape[0], jnp.float32)
    for back, weight in enumerate(NGRAM_WEIGHTS):
        wanted = tokens[jnp.maximum(last - back, 0)]
        match &= (jnp.roll(tokens, back) == wanted) & (slot >= back)
        share += weight * match / jnp.maximum(match.sum(), 1)
    return jnp.zeros(size, jnp.float32).at[jnp.roll(tokens, -1)].add(share)
