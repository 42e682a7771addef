"""Grammars from left to right: llguidance on our tokens, as the loop asks it.

Llguidance knows which tokens may follow a text. Here it gets the vocabulary as the bytes that our
tokenizer says each token adds, and is moved along a draft: forward over a node, back from its
subtree. Its state is a function of the row's tokens: what it has read is kept and compared.

An end token is allowed exactly where the text may end, and is never text.
"""

import functools
import importlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from jaxdecode.constraints.canvas import CanvasMatcher, automaton
from jaxdecode.constraints.rules import Rule
from jaxdecode.convert.tokenizer import Tokenizer
from jaxdecode.core import grammar
from jaxdecode.errors import InputError, UnsupportedError

T = TypeVar("T")
# Put before a text that is cut as if in the middle of another; no token spans it and what follows.
_MARK = "\x02"
# As json.dumps writes; with free white space nothing is forced, and a model may go on with blanks
# for ever. A schema's own "x-guidance" goes before.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def matchers(
    rules: Sequence[Rule | None],
    tokenizer: Tokenizer | None,
    vocab_size: int,
    ends: Sequence[int],
    *,
    fills: bool = False,
) -> "list[RowMatcher | CanvasMatcher | None]":
    """One matcher per row, None for rows without a rule.

    Args:
        rules: the rule of each row.
        tokenizer: the model's; None where its checkpoint has none.
        vocab_size: rows of the model's embedding.
        ends: tokens that end a row.
        fills: whether slots are filled in any order; the rules are then regular expressions.

    Raises:
        InputError: no tokenizer, no end token, one that is text, or a rule that cannot be read.
        UnsupportedError: a library is not installed, or there are several processes.
    """
    if not any(rules):
        return [None] * len(rules)
    if tokenizer is None:
        raise InputError(
            "a constraint is about text, but this checkpoint has no tokenizer; put tokenizer.json "
            "or tokenizer.model beside the weights and convert again."
        )
    if not ends:
        raise InputError(
            "a constrained text ends with an end token, and here nothing ends a row: leave out "
            "ignore_eos, or give stop_tokens."
        )
    for token in ends:
        if token < tokenizer.vocab_size and tokenizer.token_bytes[token]:
            raise InputError(
                f"stop token {token} stands for the text {tokenizer.decode([token])!r}, so a "
                "constrained text cannot end with it; use a special token."
            )
    if jax.process_count() > 1:
        raise UnsupportedError(
            "a constraint is followed on one host, but this run has several processes; give each "
            "its own prompts (--out FOLDER), or use the devices of one."
        )
    if fills:
        asked = tokenizer, vocab_size, tuple(ends)
        return [rule and CanvasMatcher(automaton(rule, *asked), rule) for rule in rules]
    vocabulary = _vocabulary(tokenizer, vocab_size, tuple(ends))
    return [None if rule is None else RowMatcher(vocabulary, rule) for rule in rules]


def checked(
    steps: Iterator[T], found: "Sequence[RowMatcher | CanvasMatcher | None]"
) -> Iterator[T]:
    """Passes on what a run yields, keeps its matchers alive, and raises what they met."""
    for step in steps:
        for matcher in found:
            if matcher is not None and matcher.failure is not None:
                raise matcher.failure
        yield step


class Vocabulary:
    """A model's tokens as llguidance sees them.

    Attributes:
        ends: tokens that end a row.
        num_words: words of a mask in the loop.
        size: tokens that llguidance knows.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: tuple[int, ...]):
        self.ends = frozenset(ends)
        self.num_words = grammar.num_words(vocab_size)
        self._library = _library()
        source = _Source(tokenizer, vocab_size, ends)
        wrapped = self._library.TokenizerWrapper(source)
        self._tokens = self._library.LLTokenizer(wrapped, eos_token=list(ends))
        self.size = len(source.tokens)

    def compile(self, rule: Rule) -> Any:
        """The matcher of a rule before the first token."""
        library = self._library.LLMatcher
        if rule.kind == "json_schema":
            text = library.grammar_from_json_schema(rule.text, defaults=JSON_STYLE)
        elif rule.kind == "regex":
            text = library.grammar_from_regex(rule.text)
        else:
            text = library.grammar_from_lark(rule.text)
        made = library(self._tokens, text, log_level=0)
        if made.is_error():
            raise InputError(f"{rule.kind} cannot be used: {made.get_error().strip()}")
        return made


class _Source:
    """What llguidance asks of a tokenizer: bytes by token, and how a text is cut."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: tuple[int, ...]):
        tokens, backend = list(tokenizer.token_bytes), tokenizer.backend
        tokens += [b""] * (max(vocab_size, max(ends) + 1) - len(tokens))
        # Tokens that stand for no text can only be named in a grammar, and need a name each.
        silent = {token for token, text in enumerate(tokens) if not text} | set(ends)
        for token in silent:
            name = backend.piece(token) if token < tokenizer.vocab_size else ""
            tokens[token] = (name or f"<|row {token}|>").encode()
        self.tokens, self.special_token_ids = tokens, sorted(silent)
        self.eos_token_id, self.bos_token_id = ends[0], tokenizer.bos_id
        self._encode = backend.encode

    def __call__(self, text: bytes) -> list[int]:
        """How the model's texts are cut in their middle, where no blank is put before them."""
        tokens = self._encode(text.decode(errors="replace"))
        if self._bytes(tokens) == text:
            return tokens
        before = self._encode(_MARK)
        tokens = self._encode(_MARK + text.decode(errors="replace"))[len(before) :]
        return tokens if self._bytes(tokens) == text else self._longest_first(text)

    def _bytes(self, tokens: Sequence[int]) -> bytes:
        return b"".join([self.tokens[token] for token in tokens])

    @functools.cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        silent = set(self.special_token_ids)
        return {text: t for t, text in enumerate(self.tokens) if t not in silent}

    def _longest_first(self, text: bytes) -> list[int]:
        found, start = [], 0
        longest = max(map(len, self._by_bytes))
        while start < len(text):
            ends = range(min(start + longest, len(text)), start, -1)
            end = next((end for end in ends if text[start:end] in self._by_bytes), None)
            if end is None:
                break
            found.append(self._by_bytes[text[start:end]])
            start = end
        return found


class RowMatcher:
    """The grammar of one row (`core.grammar.Matcher`).

    Attributes:
        failure: what kept llguidance from answering; everything is allowed from then on.
    """

    def __init__(self, vocabulary: Vocabulary, rule: Rule):
        self.failure: InputError | None = None
        self._rule, self._vocabulary = rule, vocabulary
        self._matcher = _compiled(vocabulary, rule).deep_copy()
        # Llguidance fills whole words of its own size.
        self._scratch = np.zeros(grammar.num_words(vocabulary.size), np.uint32)
        self._read: list[int] = []

    def masks(self, text: list[int], tokens: list[int], parent: list[int], out: np.ndarray) -> None:
        """Writes the tokens that may follow each node of a draft."""
        if not self._go_to(text):
            return
        children: list[list[int]] = [[] for _ in parent]
        for node, above in enumerate(parent):
            if above >= 0:
                children[above].append(node)
        self._fill(out[0])

        def below(node: int) -> None:
            for child in children[node]:
                token = tokens[child]
                # After an end nothing comes, and nothing comes after what is forbidden.
                if token in self._vocabulary.ends or not _has(out[node], token):
                    continue
                if not self._consume(token):
                    return
                self._fill(out[child])
                below(child)
                self._matcher.rollback(1)

        below(0)

    def forced(self, text: list[int], limit: int) -> list[int]:
        """The tokens, at most `limit`, that follow the text in every continuation."""
        return self._matcher.compute_ff_tokens()[:limit] if self._go_to(text) else []

    def _go_to(self, text: list[int]) -> bool:
        """Moves to the end of a text; False if nothing constrains what comes after it."""
        if self.failure is not None or not self._vocabulary.ends.isdisjoint(text):
            return False
        same = len(self._read)
        if text[:same] != self._read:
            pairs = enumerate(zip(self._read, text, strict=False))
            same = next((i for i, (a, b) in pairs if a != b), min(same, len(text)))
            self._matcher.rollback(len(self._read) - same)
            del self._read[same:]
        for token in text[same:]:
            if not self._consume(token):
                return False
            self._read.append(token)
        return True

    def _consume(self, token: int) -> bool:
        return self._matcher.consume_token(token) or self._fail()

    def _fill(self, row: np.ndarray) -> None:
        scratch = self._scratch
        self._matcher.unsafe_compute_mask_ptr(scratch.ctypes.data, scratch.nbytes)
        if self._matcher.is_error():
            self._fail()
            return
        row[:] = 0
        width = min(len(row), len(scratch))
        row[:width] = scratch[:width]

    def _fail(self) -> bool:
        reason = self._matcher.get_error().strip() or "no reason was given"
        self.failure = InputError(f"{self._rule.kind} could not be followed: {reason}")
        return False


def _has(row: np.ndarray, token: int) -> bool:
    return token >> 5 < len(row) and bool(int(row[token >> 5]) >> (token & 31) & 1)


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer, vocab_size: int, ends: tuple[int, ...]) -> Vocabulary:
    return Vocabulary(tokenizer, vocab_size, ends)


@functools.lru_cache(maxsize=1024)
def _compiled(vocabulary: Vocabulary, rule: Rule) -> Any:
    """A matcher to copy for every row."""
    return vocabulary.compile(rule)


def _library() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise UnsupportedError(
            "json_schema, regex and grammar need llguidance: pip install 'jaxdecode[constrained]'."
        ) from error
