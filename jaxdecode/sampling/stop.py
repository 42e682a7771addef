"""Stop strings: a token automaton for the compiled loop, and the cut of the text on the host.

The strings become an Aho-Corasick automaton over bytes; running it over the bytes of every token
lifts it to tokens, so that the loop finds a stop string, however it is cut into tokens, with one
lookup per token. The token that completes a stop string is kept, and nothing after it; the text
ends before the string. Of several stop strings the one completed first counts, whatever the tokens;
of those the longest.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int16, Int32

from jaxdecode.errors import InputError

MAX_BYTES = 30_000  # of all stop strings together: states are int16
MAX_TABLE = 1 << 29  # bytes; the table lives on the device beside the weights
_MIN_STATES = 16
_PAIRS = 1 << 22  # (state, token) pairs followed at once; bounds the memory of building a table


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StopTable:
    """The automaton over tokens: state 0 is the start, the last state a complete stop string.

    Attributes:
        next_state: state after a token. S is a power of two, so that other stop strings of similar
            length compile nothing new.
    """

    next_state: Int16[Array, "S V"]

    @property
    def match_state(self) -> int:
        """The state that is never left: a stop string is complete."""
        return self.next_state.shape[0] - 1


def compile_stop(stop: Sequence[str], token_bytes: Sequence[bytes], vocab_size: int) -> StopTable:
    """Builds the token automaton of some stop strings.

    Args:
        stop: the strings; none gives a table that never matches.
        token_bytes: the bytes each token adds to a text.
        vocab_size: rows of the model's output; tokens past `token_bytes` add nothing.

    Returns:
        The table.

    Raises:
        InputError: if a string is empty, or the strings are too long for a table.
    """
    _check(stop)
    byte_steps = _byte_automaton([text.encode() for text in stop])
    num_states = byte_steps.shape[0]
    if num_states * vocab_size * 2 > MAX_TABLE:
        raise InputError(
            f"the stop strings need a table of {num_states} states x {vocab_size} tokens, over "
            f"{MAX_TABLE >> 20} MiB; use fewer or shorter stop strings."
        )
    tokens = _Tokens.make(token_bytes[:vocab_size])
    path = _path_from_start(byte_steps, tokens)
    table = np.zeros((num_states, vocab_size), np.int16)
    filled = np.flatnonzero(tokens.size)
    table[:, filled] = path[tokens.start[filled] + tokens.size[filled] - 1]
    for states, affected, ends in _different_ends(byte_steps, tokens, path):
        table[states, affected] = ends
    empty = np.ones(vocab_size, bool)
    empty[filled] = False
    table[:, empty] = np.arange(num_states, dtype=np.int16)[:, None]
    table[-1] = num_states - 1
    return StopTable(jnp.asarray(table))


def cut_text(text: str, stop: Sequence[str]) -> str:
    """Returns the text before the first stop string."""
    start = _first_stop(text, stop)
    return text if start is None else text[:start]


class StopFilter:
    """Cuts a streamed text at the first stop string; shows nothing that may still become one."""

    def __init__(self, stop: Sequence[str]):
        _check(stop)
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Adds a piece of text and returns what can be shown now."""
        if self.stopped:
            return ""
        text = self._held + piece
        start = _first_stop(text, self._stop)
        if start is not None:
            self.stopped = True
            self._held = ""
            return text[:start]
        shown = len(text) - self._undecided(text)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """Ends the text and returns what was held back."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string starts."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(string.startswith(text[-length:]) for string in self._stop):
                return length
        return 0


def _check(stop: Sequence[str]) -> None:
    if isinstance(stop, str):
        raise InputError(
            f"stop must be a list of strings, got the string {stop!r:.80}; write [{stop!r:.80}]."
        )
    for index, string in enumerate(stop):
        if not isinstance(string, str):
            raise InputError(f"stop[{index}] must be a string, got {type(string).__name__}.")
        if not string:
            raise InputError(
                f"stop[{index}] is empty; an empty stop string would stop before every text."
            )
        if any("\ud800" <= character <= "\udfff" for character in string):
            raise InputError(f"stop[{index}] has half of a surrogate pair, which no text can hold.")
    size = sum(len(string.encode()) for string in stop)
    if size > MAX_BYTES:
        raise InputError(
            f"the stop strings have {size} bytes together; at most {MAX_BYTES} are possible."
        )


def _first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the stop string that is completed first begins, the longest of several."""
    found = [
        (text.find(string) + len(string), text.find(string)) for string in stop if string in text
    ]
    return min(found)[1] if found else None


def _byte_automaton(patterns: Sequence[bytes]) -> Int32[np.ndarray, "S 256"]:
    """Aho-Corasick: the state after each byte. The last state is the match and is never left."""
    children: list[dict[int, int]] = [{}]
    final = {0: False}
    for pattern in patterns:
        node = 0
        for byte in pattern:
            if final[node]:
                break  # a shorter stop string is complete before this one
            if byte not in children[node]:
                children[node][byte] = len(children)
                final[len(children)] = False
                children.append({})
            node = children[node][byte]
        final[node] = True
    return _automaton_of(children, [node for node, done in final.items() if done])


def _automaton_of(children: list[dict[int, int]], final: list[int]) -> Int32[np.ndarray, "S 256"]:
    num_states = max(_MIN_STATES, 1 << len(children).bit_length())
    steps = np.zeros((num_states, 256), np.int32)
    match = num_states - 1
    complete = np.zeros(num_states, bool)
    complete[final] = True
    fallback = np.zeros(len(children), np.int32)
    queue = deque([0])
    while queue:
        node = queue.popleft()
        # A node whose own ending is a stop string is a match too, even inside a longer string.
        complete[node] |= complete[fallback[node]]
        inherited = steps[fallback[node]].copy()
        steps[node] = inherited
        for byte, child in children[node].items():
            fallback[child] = inherited[byte] if node else 0
            steps[node, byte] = child
            queue.append(child)
    steps[complete[steps]] = match
    steps[match] = match
    return steps


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """The bytes of all tokens in one array, and the tokens ordered by first byte."""

    data: Int32[np.ndarray, "bytes"]
    start: Int[np.ndarray, "V"]
    size: Int[np.ndarray, "V"]
    by_first: Int[np.ndarray, "filled"]
    first_start: Int[np.ndarray, "257"]

    @classmethod
    def make(cls, token_bytes: Sequence[bytes]) -> "_Tokens":
        size = np.fromiter(map(len, token_bytes), np.int64, len(token_bytes))
        data = np.frombuffer(b"".join(token_bytes), np.uint8).astype(np.int32)
        start = np.cumsum(size) - size
        filled = np.flatnonzero(size)
        first = data[start[filled]]
        order = np.argsort(first, kind="stable")
        first_start = np.searchsorted(first[order], np.arange(257))
        return cls(data, start, size, filled[order], first_start)


def _path_from_start(
    steps: Int32[np.ndarray, "S 256"], tokens: _Tokens
) -> Int32[np.ndarray, "bytes"]:
    """State after each byte of each token, read from the start state."""
    path = np.zeros_like(tokens.data)
    active = np.flatnonzero(tokens.size)
    state = np.zeros(len(active), np.int32)
    position = 0
    while len(active):
        where = tokens.start[active] + position
        state = steps[state, tokens.data[where]]
        path[where] = state
        position += 1
        longer = tokens.size[active] > position
        active, state = active[longer], state[longer]
    return path


def _different_ends(
    steps: Int32[np.ndarray, "S 256"], tokens: _Tokens, path: Int32[np.ndarray, "bytes"]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (states, tokens, ends) wherever a token ends elsewhere than from the start state.

    Most tokens forget where they started at their first byte: only those that continue a string
    begun earlier are followed, and only as long as they do.
    """
    states, first_bytes = np.nonzero(steps[:-1] != steps[0])
    counts = np.diff(tokens.first_start)[first_bytes]
    groups = np.cumsum(counts) // _PAIRS
    for group in np.unique(groups):
        chosen = groups == group
        count, first = counts[chosen], tokens.first_start[:-1][first_bytes[chosen]]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        token = tokens.by_first[np.repeat(first, count) + within]
        yield from _follow(np.repeat(states[chosen], count), token, steps, tokens, path)


def _follow(
    origin: np.ndarray,
    token: np.ndarray,
    steps: Int32[np.ndarray, "S 256"],
    tokens: _Tokens,
    path: Int32[np.ndarray, "bytes"],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    state, position = origin, 0
    while len(token):
        where = tokens.start[token] + position
        state = steps[state, tokens.data[where]]
        position += 1
        apart = state != path[where]
        ended = apart & (tokens.size[token] == position)
        if ended.any():
            yield origin[ended], token[ended], state[ended]
        going = apart & ~ended
        origin, token, state = origin[going], token[going], state[going]
