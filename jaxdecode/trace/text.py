"""What the tokens of a trace look like."""

import codecs
from collections.abc import Iterable, Iterator

from jaxdecode.trace.steps import Row, Trace


def spell(trace: Trace, tokens: Iterable[int]) -> Iterator[str]:
    """Text of each token in its place: a character in several tokens belongs to its last one.

    Tokens that add nothing to a text stand as the vocabulary writes them; without a tokenizer all
    stand as their number.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        if token in trace.names:
            yield decoder.decode(b"", final=True) + trace.names[token]
            decoder.reset()
        elif token in trace.pieces:
            yield decoder.decode(trace.pieces[token])
        else:
            yield f"<{token}> "


def pieces_of(trace: Trace, row: Row) -> list[str]:
    """Text of every new token of a row."""
    return list(spell(trace, row.tokens))


def visible(text: str) -> str:
    """Text for a terminal: control characters, which could command it, are made visible."""
    return "".join(
        char if char == "\n" or char.isprintable() else f"\\x{ord(char):02x}" for char in text
    )
