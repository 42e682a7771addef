"""Which tokens of two vocabularies are the same: those that add the same bytes to a text."""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxdecode.convert.tokenizer import Tokenizer
from jaxdecode.errors import InputError

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Vocabulary(NamedTuple):
    """One model's side of the comparison; hashable.

    Attributes:
        name: what messages call the model.
        size: rows of its embedding.
        tokenizer: None if its checkpoint has none.
    """

    name: str
    size: int
    tokenizer: Tokenizer | None


class TokenMaps(NamedTuple):
    """How a draft model reads and writes the target's tokens; -1 is none.

    Attributes:
        to_draft: for every target token the draft token that stands for it in a context: the one
            of the same bytes, else of the longest end of them.
        column: for every target token the draft token of exactly its bytes; where several target
            tokens have the same bytes, only one of them has it.
    """

    to_draft: Int[Array, "V"]
    column: Int[Array, "V"]


@functools.lru_cache(maxsize=16)
def match(target: Vocabulary, draft: Vocabulary) -> TokenMaps | None:
    """The maps between two vocabularies; None if both count their tokens alike.

    Raises:
        InputError: the sizes differ and a tokenizer is missing, or no token is shared.
    """
    if target.tokenizer is None or draft.tokenizer is None:
        if target.size != draft.size:
            raise InputError(
                f"draft model {draft.name!r} has {draft.size} tokens and {target.name!r} has "
                f"{target.size}, and a tokenizer is missing to map one to the other; load both "
                "with their tokenizers, or use a draft model of the same vocabulary."
            )
        return None
    if _alike(target.tokenizer, draft.tokenizer):
        return None
    context, exact = _maps(target.tokenizer, draft.tokenizer, draft.size)
    if (exact[: target.size] < 0).all():
        raise InputError(
            f"draft model {draft.name!r} and {target.name!r} have no token in common; use a draft "
            "model of a similar vocabulary."
        )
    return TokenMaps(_sized(context, target.size), _sized(exact, target.size))


def _alike(target: Tokenizer, draft: Tokenizer) -> bool:
    """Equal bytes for equal ids; one of the two may have more tokens at its end."""
    common = min(target.vocab_size, draft.vocab_size)
    return target.token_bytes[:common] == draft.token_bytes[:common]


def _maps(target: Tokenizer, draft: Tokenizer, draft_size: int) -> tuple[np.ndarray, np.ndarray]:
    ours, theirs = _by_bytes(target), _by_bytes(draft)
    theirs = {piece: token for piece, token in theirs.items() if token < draft_size}
    context = np.full(target.vocab_size, -1, np.int32)
    exact = np.full(target.vocab_size, -1, np.int32)
    for token, piece in enumerate(target.token_bytes):
        ends = (piece[i:] for i in range(len(piece)))
        context[token] = next((theirs[end] for end in ends if end in theirs), -1)
    for piece, token in ours.items():
        exact[token] = theirs.get(piece, -1)
    for token, partner in _special_pairs(target, draft):
        if partner < draft_size:
            context[token] = exact[token] = partner
    return context, exact


def _by_bytes(tokenizer: Tokenizer) -> dict[bytes, int]:
    """The token of each piece of text; a written character goes before its byte's stand-in."""
    found: dict[bytes, int] = {}
    for token, piece in enumerate(tokenizer.token_bytes):
        if not piece:
            continue
        if piece not in found or _BYTE_PIECE.fullmatch(tokenizer.backend.piece(found[piece])):
            found[piece] = token
    return found


def _special_pairs(target: Tokenizer, draft: Tokenizer) -> Iterable[tuple[int, int]]:
    """Special tokens of equal name, and those that start and end texts."""
    pairs = {}
    for token in target.backend.special:
        partner = draft.backend.token_id(target.backend.piece(token))
        if partner is not None and partner in draft.backend.special:
            pairs[token] = partner
    for ours, theirs in ((target.bos_id, draft.bos_id), (target.eos_id, draft.eos_id)):
        if ours is not None and theirs is not None:
            pairs.setdefault(ours, theirs)
    return pairs.items()


def _sized(tokens: np.ndarray, size: int) -> Int[Array, "V"]:
    """Rows of the embedding that stand for no token map to none."""
    return jnp.asarray(np.pad(tokens[:size], (0, max(size - len(tokens), 0)), constant_values=-1))
