"""Grammars in the loop: which tokens may follow each node of a draft, asked of the host.

A grammar's automaton lives on the host, as a matcher that is registered under a number; the
compiled step knows the number only, so another grammar is no other program. A matcher answers from
the row's new tokens alone. This is the one round trip to the host inside a step.
"""

import functools
import itertools
import weakref
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from jaxdecode.core.commit import slots
from jaxdecode.core.types import Candidates, Canvas, Proposal, Request, Window

_ALL = np.uint32(0xFFFFFFFF)


class Matcher(Protocol):
    """The grammar of one row."""

    def masks(self, text: list[int], tokens: list[int], parent: list[int], out: np.ndarray) -> None:
        """Writes the tokens that may follow each node of a draft.

        Args:
            text: the row's new tokens; node 0 is the last of them.
            tokens: token of each node.
            parent: parent of each node; -1 for node 0 and for nodes that do not exist.
            out: `[N, M]` uint32, bit t of a row is token t; all set where nothing is written.
        """
        ...

    def forced(self, text: list[int], limit: int) -> list[int]:
        """The tokens, at most `limit`, that follow the text in every continuation."""
        ...


class CanvasMatcher(Protocol):
    """The grammar of one row whose slots are filled in any order."""

    def fits(self, slots: list[int], places: list[int], out: np.ndarray) -> None:
        """Writes the tokens that fit each of some open slots.

        Args:
            slots: tokens of the row's text, -1 where undecided.
            places: which slots; -1 for none.
            out: `[W, M]` uint32, bit t of a row is token t; all set where nothing is written.
        """
        ...

    def together(self, slots: list[int], places: list[int], tokens: list[int]) -> list[bool]:
        """Which of some tokens can be decided at once; earlier ones go first."""
        ...


AnyMatcher = Matcher | CanvasMatcher

# Whoever registered a matcher keeps it alive; nothing has to be taken out again.
_MATCHERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count(1)


def register(matcher: AnyMatcher) -> int:
    """The number under which `Request.grammar` finds a matcher for as long as it lives."""
    number = next(_NUMBERS)
    _MATCHERS[number] = matcher
    return number


def num_words(vocab_size: int) -> int:
    """Words of 32 bits that hold a bit for every token."""
    return -(-vocab_size // 32)


def unpack(words: UInt32[Array, "*N M"], vocab_size: int) -> Bool[Array, "*N V"]:
    """Bits of packed masks; bit t is token t."""
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(*words.shape[:-1], -1)[..., :vocab_size].astype(bool)


def masks(
    request: Request, canvas: Canvas, proposal: Proposal, vocab_size: int
) -> UInt32[Array, "B N M"] | None:
    """Packed masks of the tokens that may follow each node; None if no row has a grammar.

    Everything is allowed where it does not matter: after nodes that the grammar forbids, and in
    rows without a grammar.
    """
    if request.grammar is None:
        return None
    shape = (*proposal.tokens.shape, num_words(vocab_size))
    parent = jnp.where(proposal.valid, proposal.parent, -1)
    return jax.pure_callback(
        functools.partial(_masks, shape),
        jax.ShapeDtypeStruct(shape, jnp.uint32),
        *_texts(request, canvas),
        proposal.tokens,
        parent,
    )


def forced(
    request: Request, canvas: Canvas, limit: int
) -> tuple[Int[Array, "B M"], Bool[Array, "B M"]]:
    """The tokens that must follow in each row, and which of the `limit` places have one."""
    shape = (canvas.done.shape[0], limit)
    if request.grammar is None:
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    tokens = jax.pure_callback(
        functools.partial(_forced, shape),
        jax.ShapeDtypeStruct(shape, jnp.int32),
        *_texts(request, canvas),
    )
    return jnp.maximum(tokens, 0), tokens >= 0


def fits(
    request: Request, canvas: Canvas, window: Window, vocab_size: int
) -> UInt32[Array, "B W M"] | None:
    """Packed masks of the tokens that fit each undecided slot; None if no row has a grammar."""
    if request.grammar is None:
        return None
    shape = (*window.open.shape, num_words(vocab_size))
    return jax.pure_callback(
        functools.partial(_fits, shape),
        jax.ShapeDtypeStruct(shape, jnp.uint32),
        *_canvases(request, canvas),
        jnp.where(window.open, slots(window), -1),
    )


def together(
    request: Request,
    canvas: Canvas,
    window: Window,
    candidates: Candidates,
    chosen: Bool[Array, "B W"],
) -> Bool[Array, "B W"]:
    """Those of the chosen slots whose candidates fit together; the likeliest go first."""
    if request.grammar is None:
        return chosen
    return jax.pure_callback(
        _together,
        jax.ShapeDtypeStruct(chosen.shape, bool),
        *_canvases(request, canvas),
        jnp.where(chosen & window.open, slots(window), -1),
        candidates.tokens,
        candidates.logprob,
    )


def _canvases(request: Request, canvas: Canvas) -> tuple[Array, ...]:
    """What the host needs to know the texts of the rows, decided and not."""
    assert request.grammar is not None
    number = jnp.where(canvas.done, 0, request.grammar)
    written = canvas.open | (canvas.commit_step >= 0)
    start = jnp.argmax(written, axis=-1).astype(jnp.int32)
    return number, jnp.where(canvas.open, -1, canvas.tokens), start, canvas.end


def _fits(shape, number, tokens, start, end, places):
    out = np.full(shape, _ALL)
    start, places = np.asarray(start), np.asarray(places)
    for row, matcher, text in _rows(number, tokens, start, end):
        inside = (places[row] >= start[row]) & (places[row] < start[row] + len(text))
        matcher.fits(text, np.where(inside, places[row] - start[row], -1).tolist(), out[row])
    return out


def _together(number, tokens, start, end, places, candidates, logprob):
    start, places, candidates = np.asarray(start), np.asarray(places), np.asarray(candidates)
    out = places >= 0
    for row, matcher, text in _rows(number, tokens, start, end):
        inside = (places[row] >= start[row]) & (places[row] < start[row] + len(text))
        chosen = np.flatnonzero(inside)
        chosen = chosen[np.argsort(-np.asarray(logprob)[row, chosen], kind="stable")]
        asked = (places[row, chosen] - start[row]).tolist(), candidates[row, chosen].tolist()
        out[row, chosen] = matcher.together(text, *asked)
    return out


def _texts(request: Request, canvas: Canvas) -> tuple[Array, ...]:
    """What the host needs to know the new tokens of every row that is still written."""
    assert request.grammar is not None
    number = jnp.where(canvas.done, 0, request.grammar)
    num_new = (canvas.commit_step >= 0).sum(-1, dtype=jnp.int32)
    return number, canvas.tokens, canvas.length + 1 - num_new, canvas.length + 1


def _rows(number, tokens, start, stop):
    """Row, matcher and new tokens of every row that has a grammar and goes on."""
    number, tokens, start, stop = map(np.asarray, (number, tokens, start, stop))
    for row in np.flatnonzero(number):
        yield row, _MATCHERS[int(number[row])], tokens[row, start[row] : stop[row]].tolist()


def _masks(shape, number, canvas_tokens, start, stop, tokens, parent):
    out = np.full(shape, _ALL)
    tokens, parent = np.asarray(tokens), np.asarray(parent)
    for row, matcher, text in _rows(number, canvas_tokens, start, stop):
        matcher.masks(text, tokens[row].tolist(), parent[row].tolist(), out[row])
    return out


def _forced(shape, number, canvas_tokens, start, stop):
    out = np.full(shape, -1, np.int32)
    for row, matcher, text in _rows(number, canvas_tokens, start, stop):
        found = matcher.forced(text, shape[1])
        out[row, : len(found)] = found
    return out
