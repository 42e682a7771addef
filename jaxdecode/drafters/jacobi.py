"""Jacobi decoding: guess the next W tokens at once and let every forward pass correct all of them.

A step scores a window of guesses. The guesses that the target confirms are committed, and what the
target says after each of the others is the next guess of that place: an iteration whose fixed point
is plain decoding, because the first wrong guess of a step is right in the next. New places at the
window's end are filled with what followed the guess before them where it last stood in the row. A
target that was trained to (recipe `cllm`) gets several places right at once.

Exactness: L0 under sample_match; guesses are drawn with the noise of their positions.
Cost: W + 1 tokens per forward pass, always; state W tokens per row.
Source: arXiv:2305.10427 (algorithm 2); differs: the window moves on with what was committed instead
of ending as a block, new places are not random, and sampling is covered.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.sampling import guess
from jaxdecode.trees import chain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        window: places that are guessed at once.
    """

    window: int = 8

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("window", self.window, low=1)


def make(config: Config, models: Models) -> Drafter:
    """The drafter; its state is the window of guesses."""
    del models
    window = config.window

    def init(weights, request, canvas, view, memory):
        del weights, request, view, memory
        return _first(canvas.tokens, canvas.length, window=window)

    def propose(weights, state, request, canvas, view):
        del weights, request, view
        return chain.propose(canvas, state, jnp.ones(state.shape, bool)), state

    def update(weights, state, request, canvas, proposal, verdict, output):
        del weights, state
        num_committed = verdict.num_accepted + 1
        # A row that ended early is off by some places; nobody reads its guesses.
        position = (canvas.length - num_committed)[:, None] + proposal.depth + 1
        drawn = guess.tokens(request, output.logits, position, allowed=output.allowed)

        def row(tokens, length, drawn, num_committed):
            source = num_committed + jnp.arange(window, dtype=jnp.int32)
            kept = drawn[jnp.minimum(source, window)]
            return follow(tokens, length, kept, window + 1 - num_committed)

        return jax.vmap(row)(canvas.tokens, canvas.length, drawn, num_committed)

    return Drafter(init=init, propose=propose, update=update, max_depth=window)


@functools.partial(jax.jit, static_argnames="window")
def _first(tokens: Int[Array, "B L"], length: Int[Array, "B"], *, window: int) -> Int[Array, "B W"]:
    """The guesses before the first step."""

    def row(tokens, length):
        blank = jnp.broadcast_to(tokens[length], (window,))
        return follow(tokens, length, blank, jnp.int32(0))

    return jax.vmap(row)(tokens, length)


def follow(
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    guesses: Int[Array, "W"],
    num_known: Int[Array, ""],
) -> Int[Array, "W"]:
    """Fills the guesses from `num_known` on, each from the one before it.

    Args:
        tokens: the row.
        length: slot of its last token.
        guesses: the window.
        num_known: guesses that stay.
    """
    slot = jnp.arange(tokens.shape[0], dtype=jnp.int32)

    def fill(previous, place):
        index, known = place
        last = jnp.max(jnp.where((tokens == previous) & (slot < length), slot, -1))
        new = jnp.where(last >= 0, tokens[last + 1], previous)
        token = jnp.where(index < num_known, known, new)
        return token, token

    places = (jnp.arange(guesses.shape[0]), guesses)
    return jax.lax.scan(fill, tokens[length], places)[1]
