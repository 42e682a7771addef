"""The two libraries that cut text into tokens, behind one small interface.

Both backends cut a text without adding anything to it, and both tell the exact bytes a token adds
to a text. Special tokens written out in a text (`<|im_start|>`) become their token, as in
transformers.
"""

import copy
import json
import re
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import sentencepiece
import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from jaxdecode.errors import CorruptCheckpointError, UnsupportedError

MAX_VOCAB = 1 << 22  # sixteen times Gemma's; a damaged id must not make us allocate gigabytes
_SPACE = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPECIAL_TYPES = (2, 3)  # sentencepiece's UNKNOWN and CONTROL
_UNUSED_TYPE = 5
_BYTE_TYPE = 6


class AddedToken(NamedTuple):
    """A token listed beside the vocabulary; a special one never shows in a text."""

    content: str
    special: bool


class Backend(Protocol):
    """What a tokenizer needs from the library underneath."""

    kind: str
    file_name: str
    raw: bytes
    special: frozenset[int]
    bos_id: int | None
    eos_id: int | None

    def encode(self, text: str) -> list[int]:
        """Cuts a text into tokens and adds nothing."""
        ...

    def token_id(self, piece: str) -> int | None:
        """Returns the token written exactly like this, or None."""
        ...

    def piece(self, token: int) -> str:
        """Returns how the vocabulary file writes a token."""
        ...

    def token_bytes(self) -> list[bytes]:
        """Returns the bytes every token adds to a text; nothing for special tokens."""
        ...

    def adds_bos(self, bos_id: int) -> bool:
        """Returns whether the vocabulary file itself puts this token before a text."""
        ...

    def without(self, token: int) -> "Backend":
        """Returns the same backend, for which no text is cut into this token."""
        ...


class JsonBackend:
    """A tokenizer.json, read by the library `tokenizers`."""

    kind = "tokenizers"
    file_name = "tokenizer.json"
    bos_id: int | None = None  # the file has no place to say
    eos_id: int | None = None

    def __init__(self, raw: bytes, added: Mapping[int, AddedToken], source: str):
        self.raw = raw
        self._content = _parse_json(raw, source)
        self._tokenizer = _build_tokenizer(raw, source)
        self._source = source
        self._beside = dict(added)
        for token, entry in sorted(added.items()):
            if self._tokenizer.token_to_id(entry.content) is None:
                self._tokenizer.add_tokens([_library_token(entry)])
            if self._tokenizer.token_to_id(entry.content) != token:
                raise CorruptCheckpointError(
                    f"{source}: the added token {entry.content!r} should have id {token}, but the "
                    f"vocabulary gives {self._tokenizer.token_to_id(entry.content)}."
                )
        self._cutter = self._tokenizer
        self._added = self._tokenizer.get_added_tokens_decoder()
        named_special = {token for token, entry in added.items() if entry.special}
        self.special = frozenset(
            named_special | {token for token, entry in self._added.items() if entry.special}
        )

    def encode(self, text: str) -> list[int]:
        """Cuts a text into tokens and adds nothing."""
        return self._cutter.encode(text, add_special_tokens=False).ids

    def token_id(self, piece: str) -> int | None:
        """Returns the token written exactly like this, or None."""
        return self._tokenizer.token_to_id(piece)

    def piece(self, token: int) -> str:
        """Returns how the vocabulary file writes a token."""
        return self._tokenizer.id_to_token(token) or ""

    def adds_bos(self, bos_id: int) -> bool:
        """Returns whether the file's post-processor starts every text with this token."""
        return self._tokenizer.encode("", add_special_tokens=True).ids[:1] == [bos_id]

    def without(self, token: int) -> "JsonBackend":
        """Returns the same backend, for which no text is cut into this token.

        The token keeps its id and gets a name that no text holds: without it, the library would
        number those after it anew.
        """
        name, hidden = self.piece(token), secrets.token_hex(16)
        if not name:
            return self
        content = json.loads(self.raw)
        for entry in content.get("added_tokens") or ():
            entry["content"] = hidden if entry["content"] == name else entry["content"]
        model = content.get("model")
        vocab = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(vocab, dict) and name in vocab:
            vocab[hidden] = vocab.pop(name)
        elif isinstance(vocab, list):
            model["vocab"] = [
                [hidden, *rest] if piece == name else [piece, *rest] for piece, *rest in vocab
            ]
        beside = {
            other: entry._replace(content=hidden) if entry.content == name else entry
            for other, entry in self._beside.items()
        }
        made = copy.copy(self)
        made._cutter = JsonBackend(json.dumps(content).encode(), beside, self._source)._tokenizer
        return made

    def token_bytes(self) -> list[bytes]:
        """Returns the bytes every token adds to a text; nothing for special tokens."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        size = _checked_size(max(vocabulary.values(), default=-1) + 1, self._source)
        if _mentions(self._content.get("decoder"), {"ByteLevel"}):
            to_bytes, spell_added = _undo_byte_level, str.encode
        elif _mentions(self._content.get("decoder"), {"Replace", "Metaspace"}):
            to_bytes, spell_added = _undo_sentencepiece, _undo_spaces
        else:
            raise UnsupportedError(
                f"{self._source}: the decoder {_decoder_name(self._content)} is not "
                "supported; expected byte-level BPE (ByteLevel) or a sentencepiece vocabulary "
                "(Replace or Metaspace)."
            )
        table = [b""] * size
        for piece, token in vocabulary.items():
            table[token] = to_bytes(piece)
        for token, entry in self._added.items():
            table[token] = spell_added(entry.content)
        for token in self.special:
            table[token] = b""
        return table


class SentencePieceBackend:
    """A tokenizer.model, read by the library `sentencepiece`.

    Args:
        raw: the bytes of the file.
        added: tokens listed beside the file, by id.
        prefix_everywhere: the dummy space goes before every stretch of text between special tokens
            (the first Llama releases, llama.cpp), not only before the first one.
        source: what error messages call the file.
    """

    kind = "sentencepiece"
    file_name = "tokenizer.model"

    def __init__(
        self, raw: bytes, added: Mapping[int, AddedToken], *, prefix_everywhere: bool, source: str
    ):
        self.raw = raw
        self._source = source
        model = _parse_model(raw, source)
        pieces = [(piece.piece, piece.type) for piece in model.pieces]
        size = _checked_size(max([len(pieces), *(token + 1 for token in added)]), source)
        self._pieces = pieces + [("", _UNUSED_TYPE)] * (size - len(pieces))
        self._added = {
            token: entry
            for token, entry in added.items()
            if pieces[token : token + 1] or entry.content
        }
        self._processor = _build_processor(raw, source)
        self.bos_id, self.eos_id = (
            token if token >= 0 else None
            for token in (self._processor.bos_id(), self._processor.eos_id())
        )
        self._later = self._processor
        if model.normalizer_spec.add_dummy_prefix and not prefix_everywhere:
            model.normalizer_spec.add_dummy_prefix = False
            self._later = _build_processor(model.SerializeToString(), source)
        self._set_special()

    def _set_special(self) -> None:
        typed = {token for token, (_, kind) in enumerate(self._pieces) if kind in _SPECIAL_TYPES}
        named = {token for token, entry in self._added.items() if entry.special}
        self.special = frozenset(typed | named)
        self._cut_out = {entry.content: token for token, entry in self._added.items()}
        self._cut_out |= {
            self._pieces[token][0]: token for token in typed if self._pieces[token][0]
        }
        self._splitter = _splitter(self._cut_out)

    def encode(self, text: str) -> list[int]:
        """Cuts a text into tokens and adds nothing."""
        tokens: list[int] = []
        stretches = self._splitter.split(text) if self._splitter else [text]
        for index, stretch in enumerate(stretches):
            if index % 2:
                tokens.append(self._cut_out[stretch])
            elif stretch:
                processor = self._later if index else self._processor
                tokens.extend(processor.encode(stretch))
        return tokens

    def token_id(self, piece: str) -> int | None:
        """Returns the token written exactly like this, or None."""
        if piece in self._cut_out:
            return self._cut_out[piece]
        token = self._processor.piece_to_id(piece)
        return token if self._processor.id_to_piece(token) == piece else None

    def piece(self, token: int) -> str:
        """Returns how the vocabulary file writes a token."""
        return self._added[token].content if token in self._added else self._pieces[token][0]

    def adds_bos(self, bos_id: int) -> bool:
        """Returns True: the file cannot say, and every family that has one starts with BOS."""
        del bos_id
        return True

    def without(self, token: int) -> "SentencePieceBackend":
        """Returns the same backend, for which no text is cut into this token."""
        name = self.piece(token)
        made = copy.copy(self)
        made._processor, made._later = (
            _build_processor(_renamed(processor, name), self._source)
            for processor in (self._processor, self._later)
        )
        made._cut_out = {text: other for text, other in self._cut_out.items() if other != token}
        made._splitter = _splitter(made._cut_out)
        return made

    def token_bytes(self) -> list[bytes]:
        """Returns the bytes every token adds to a text; nothing for special tokens."""
        table = [
            bytes([int(piece[3:5], 16)]) if kind == _BYTE_TYPE else _undo_spaces(piece)
            for piece, kind in self._pieces
        ]
        for token, entry in self._added.items():
            table[token] = entry.content.encode()
        for token in self.special:
            table[token] = b""
        return table


def _splitter(cut_out: Mapping[str, int]) -> re.Pattern[str] | None:
    # Longest first: <unused10> must not be read as <unused1> followed by 0>.
    ordered = sorted(cut_out, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")") if ordered else None


def _renamed(processor: sentencepiece.SentencePieceProcessor, name: str) -> bytes:
    """A sentencepiece model in which a piece has a name that no text holds."""
    model = model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue] (made at import)
    model.ParseFromString(processor.serialized_model_proto())
    for piece in model.pieces:
        if piece.piece == name:
            piece.piece = secrets.token_hex(16)
    return model.SerializeToString()


def byte_alphabet() -> dict[int, str]:
    """Returns the printable character with which byte-level BPE writes each byte.

    Printable Latin-1 bytes stand for themselves; the 68 others take the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {byte: chr(byte) for byte in printable}
    return alphabet | {byte: chr(0x100 + index) for index, byte in enumerate(others)}


# Maps each alphabet character to the Latin-1 character of its byte, and every Latin-1 character
# outside the alphabet to one that Latin-1 cannot hold: such a piece was not written in the
# alphabet.
_FROM_ALPHABET = {byte: "\uffff" for byte in range(256)} | {
    ord(character): chr(byte) for byte, character in byte_alphabet().items()
}


def _undo_byte_level(piece: str) -> bytes:
    try:
        return piece.translate(_FROM_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        return piece.encode()


def _undo_spaces(piece: str) -> bytes:
    return piece.replace(_SPACE, " ").encode()


def _undo_sentencepiece(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece) if piece.startswith("<0x") else None
    return bytes([int(byte[1], 16)]) if byte else _undo_spaces(piece)


def _library_token(entry: AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(entry.content, special=entry.special, normalized=False)


def _mentions(component: object, names: set[str]) -> bool:
    """Whether a component of tokenizer.json is, or is a sequence with, one of the named types."""
    if not isinstance(component, dict):
        return False
    parts = component.get("decoders")
    inner = parts if isinstance(parts, list) else []
    return component.get("type") in names or any(_mentions(part, names) for part in inner)


def _decoder_name(content: dict) -> str:
    decoder = content.get("decoder")
    return repr(decoder.get("type")) if isinstance(decoder, dict) else "(none)"


def _checked_size(size: int, source: str) -> int:
    if size > MAX_VOCAB:
        raise CorruptCheckpointError(
            f"{source}: the highest token id is {size - 1}; at most {MAX_VOCAB} tokens are allowed."
        )
    return size


def _parse_json(raw: bytes, source: str) -> dict:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{source}: not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise CorruptCheckpointError(f"{source}: expected a JSON object.")
    return content


def _build_tokenizer(raw: bytes, source: str) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(raw)
    except BaseException as error:
        # The library raises bare Exception, and its Rust panics derive from BaseException only.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CorruptCheckpointError(f"{source}: not a usable tokenizer ({error}).") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _parse_model(raw: bytes, source: str) -> Any:
    model = model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue] (made at import)
    try:
        model.ParseFromString(raw)
    except DecodeError as error:
        raise CorruptCheckpointError(f"{source}: not a sentencepiece model ({error}).") from error
    for token, piece in enumerate(model.pieces):
        if not isinstance(piece.piece, str):  # what protobuf gives for bytes that are no text
            raise CorruptCheckpointError(f"{source}: token {token} is not UTF-8.")
        if piece.type == _BYTE_TYPE and not _BYTE_PIECE.fullmatch(piece.piece):
            raise CorruptCheckpointError(
                f"{source}: token {token} is a byte token written {piece.piece!r}, not like <0x0A>."
            )
    return model


def _build_processor(raw: bytes, source: str) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(raw)
    except Exception as error:  # the library has no error class of its own
        raise CorruptCheckpointError(
            f"{source}: not a usable sentencepiece model ({error})."
        ) from error
    return processor
