"""Regular expressions over a partly filled canvas, for methods that fill slots in any order.

The expression becomes an automaton over tokens (outlines-core). Slot by slot, two sets of states
say what is still possible: those that the decided tokens before a slot can lead to, and those from
which the decided tokens after it can still lead to an accepted text. A token fits an open slot if
it goes from the one set to the other. After the end of the text come end tokens only. Slots that
are decided together must fit together: they are tried in the order of confidence, and one that does
not fit any more stays open. As long as every step does so, some accepted text is always left.

Cost: slots times states squared for the sets, and one look at every edge per open slot.
Source: ours; the joint choice is that of arXiv:2505.23061 made greedily.
"""

import functools
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdecode.constraints.rules import Rule
from jaxdecode.convert.tokenizer import Tokenizer
from jaxdecode.errors import InputError, UnsupportedError

# Stands behind every text while the automaton is made: outlines-core 0.2.14 loses edges that leave
# a state in which a text may end, and so there is one such state only. A code point that no text
# has.
_CLOSING = "\U0010ffff"


class Automaton(NamedTuple):
    """An expression as an automaton over tokens; state 0 is the first, the last one the end.

    Attributes:
        source: state that each edge leaves.
        token: its token; edges are in the order of tokens.
        target: state that it leads to.
        accepting: states in which the text may end.
        step: 1 where some token leads from a state to another.
    """

    source: Int[np.ndarray, "E"]
    token: Int[np.ndarray, "E"]
    target: Int[np.ndarray, "E"]
    accepting: Bool[np.ndarray, "S"]
    step: Float[np.ndarray, "S S"]

    def edges_of(self, token: int) -> slice:
        """The edges of one token."""
        return slice(*np.searchsorted(self.token, [token, token + 1]))

    def after(self, states: Bool[np.ndarray, "S"], token: int) -> Bool[np.ndarray, "S"]:
        """States after a slot; `token` is -1 where the slot is open."""
        if token < 0:
            return states.astype(np.float32) @ self.step > 0
        edges, found = self.edges_of(token), np.zeros_like(states)
        found[self.target[edges][states[self.source[edges]]]] = True
        return found

    def before(self, states: Bool[np.ndarray, "S"], token: int) -> Bool[np.ndarray, "S"]:
        """States before a slot from which it leads to one of `states`."""
        if token < 0:
            return self.step @ states.astype(np.float32) > 0
        edges, found = self.edges_of(token), np.zeros_like(states)
        found[self.source[edges][states[self.target[edges]]]] = True
        return found

    def forward(self, slots: Sequence[int]) -> Bool[np.ndarray, "L S"]:
        """States that each slot, and the end of the last one, can be reached in."""
        first = np.arange(len(self.accepting)) == 0
        return np.stack(_scan(self.after, first, slots))

    def backward(self, slots: Sequence[int]) -> Bool[np.ndarray, "L S"]:
        """States before each slot, and after the last, from which an accepted text is possible."""
        return np.stack(_scan(self.before, self.accepting, slots[::-1])[::-1])

    def accepts(self, slots: Sequence[int]) -> bool:
        """Whether some way to fill the open slots gives an accepted text."""
        return bool((self.forward(slots)[-1] & self.accepting).any())


def _scan(move, states, slots):
    found = [states]
    for token in slots:
        found.append(move(found[-1], token))
    return found


class CanvasMatcher:
    """The expression of one row (`core.grammar.CanvasMatcher`).

    Attributes:
        failure: why no text is possible; everything is allowed then.
    """

    def __init__(self, automaton: Automaton, rule: Rule):
        self.failure: InputError | None = None
        self._automaton, self._rule = automaton, rule

    def fits(self, slots: list[int], places: list[int], out: np.ndarray) -> None:
        """Writes the tokens that fit each of some open slots.

        Args:
            slots: tokens of the row's text, -1 where undecided.
            places: which slots; -1 for none.
            out: `[W, M]` uint32; bit t of a row is token t.
        """
        net = self._automaton
        left, right = net.forward(slots), net.backward(slots)
        if not (left[-1] & net.accepting).any():
            self.failure = self.failure or InputError(
                f"no text of at most {len(slots)} tokens matches regex={self._rule.text!r}; raise "
                "max_new_tokens."
            )
            return
        for row, place in zip(out, places, strict=True):
            if place >= 0:
                fitting = left[place][net.source] & right[place + 1][net.target]
                row[:] = _packed(net.token[fitting], len(row))

    def together(self, slots: list[int], places: list[int], tokens: list[int]) -> list[bool]:
        """Which of some tokens can be decided at once; earlier ones go first."""
        slots = list(slots)
        if self.failure is not None or self._automaton.accepts(_put(slots, places, tokens)):
            return [True] * len(places)
        kept = []
        for place, token in zip(places, tokens, strict=True):
            tried = _put(slots, [place], [token])
            kept.append(self._automaton.accepts(tried))
            slots = tried if kept[-1] else slots
        return kept


def _put(slots: list[int], places: list[int], tokens: list[int]) -> list[int]:
    changed = list(slots)
    for place, token in zip(places, tokens, strict=True):
        changed[place] = token
    return changed


def _packed(tokens: Int[np.ndarray, "n"], num_words: int) -> np.ndarray:
    bits = np.zeros(32 * num_words, np.uint8)
    bits[tokens[tokens < len(bits)]] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


@functools.lru_cache(maxsize=64)
def automaton(
    rule: Rule, tokenizer: Tokenizer, vocab_size: int, ends: tuple[int, ...]
) -> Automaton:
    """The automaton of an expression over a model's tokens.

    Raises:
        InputError: the expression cannot be read, or no text matches it.
        UnsupportedError: outlines-core is not installed.
    """
    library = _library()
    by_bytes: dict[bytes, list[int]] = {}
    for token, text in enumerate(tokenizer.token_bytes[:vocab_size]):
        if text and token not in ends:
            by_bytes.setdefault(text, []).append(token)
    try:
        # By itself first: in brackets, some mistakes are none.
        library.Index(rule.text, library.Vocabulary(256, {bytes([i]): [i] for i in range(256)}))
        closing, unused = vocab_size, vocab_size + 1
        vocabulary = library.Vocabulary(unused, by_bytes | {_CLOSING.encode(): [closing]})
        index = library.Index(f"(?:{rule.text}){_CLOSING}", vocabulary)
    except ValueError as error:
        raise InputError(f"regex cannot be used: {error}") from error
    return _read(index, closing, ends)


def _read(index: Any, closing: int, ends: tuple[int, ...]) -> Automaton:
    """The automaton of an index; texts may end where the closing token leads to a final state."""
    names, final = {index.get_initial_state(): 0}, index.get_final_states()
    edges, accepting = [], []
    for state, moves in index.get_transitions().items():
        source = names.setdefault(state, len(names))
        targets = [names.setdefault(target, len(names)) for target in moves.values()]
        part = np.empty((len(moves), 3), np.int32)
        part[:, 0], part[:, 1], part[:, 2] = source, list(moves), targets
        edges.append(part[part[:, 1] < closing])
        if moves.get(closing) in final:
            accepting.append(source)
    over = len(names)
    edges.append(np.asarray([(s, end, over) for s in (*accepting, over) for end in ends], np.int32))
    source, token, target = np.concatenate(edges).T
    order = np.argsort(token, kind="stable")
    source, token, target = source[order], token[order], target[order]
    may_end = np.zeros(over + 1, bool)
    may_end[[*accepting, over]] = True
    step = np.zeros((over + 1, over + 1), np.float32)
    step[source, target] = 1.0
    return Automaton(source, token, target, may_end, step)


def _library() -> Any:
    try:
        return importlib.import_module("outlines_core")
    except ImportError as error:
        raise UnsupportedError(
            "regex on a model that fills slots needs outlines-core: pip install "
            "'jaxdecode[constrained]'."
        ) from error
