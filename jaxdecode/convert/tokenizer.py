"""Text to tokens and back, the same for every checkpoint format.

`token_bytes` is the ground truth of decoding: text is the bytes of the tokens joined, then read as
UTF-8. Stop strings, streaming and `decode` all use it, so they cannot disagree.
"""

import codecs
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdecode.convert import chat, tokenizer_files
from jaxdecode.convert.backends import Backend, JsonBackend, SentencePieceBackend
from jaxdecode.convert.gguf_vocab import GgufVocab, gguf_vocab
from jaxdecode.errors import InputError

# Tokens with which instruction-tuned models end their turn, by model family. They stop a generation
# if the vocabulary holds them as special tokens, even where the checkpoint forgets to list them.
TURN_ENDS = (
    "<|im_end|>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_turn|>",
)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Tokenizer:
    """Cuts text into tokens and gives back the exact bytes of every token.

    Attributes:
        backend: the library underneath.
        bos_id: token that starts a text, if the checkpoint names one.
        eos_id: token that ends a text, if the checkpoint names one.
        stop_tokens: tokens that end a generation: `eos_id` first, then the ends of a turn.
        chat_template: the checkpoint's jinja template, if it has one.
        add_bos: whether a raw prompt starts with `bos_id`, as the checkpoint says.
        config: what `save` writes as tokenizer_config.json, without the template.
        generation: what `save` writes as generation_config.json, without the stop tokens.
    """

    backend: Backend
    bos_id: int | None
    eos_id: int | None
    stop_tokens: tuple[int, ...]
    chat_template: str | None
    add_bos: bool
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def kind(self) -> str:
        """The library that cuts the text: `tokenizers` or `sentencepiece`."""
        return self.backend.kind

    @functools.cached_property
    def token_bytes(self) -> list[bytes]:
        """The exact bytes each token adds to a text; empty for special tokens."""
        return self.backend.token_bytes()

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included; a model may have more rows than this."""
        return len(self.token_bytes)

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Cuts a text into tokens.

        Args:
            text: any text; special tokens written out in it become their token.
            add_special: put `bos_id` first if the checkpoint wants it before a raw prompt.

        Returns:
            The token ids.

        Raises:
            InputError: if the text cannot be written as UTF-8.
        """
        if not isinstance(text, str):
            raise InputError(f"text must be a string, got {type(text).__name__}.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"text has {text[error.start]!r} at character {error.start}, half of a surrogate "
                "pair, which UTF-8 cannot hold; decode the input with errors='replace' first."
            ) from error
        start = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        return start + self.backend.encode(text)

    def without(self, token: int) -> "Tokenizer":
        """The same tokenizer, for which the written form of a token is text like any other.

        For the mask token of a model that fills slots: a prompt that quotes it must not gain
        undecided slots. Other special tokens that are written out still become their token.
        """
        if not 0 <= token < self.vocab_size:
            return self
        return dataclasses.replace(self, backend=self.backend.without(token))

    def decode(self, tokens: Sequence[int]) -> str:
        """Joins the bytes of the tokens and reads them as UTF-8; broken characters turn U+FFFD."""
        return _join(self.token_bytes, tokens).decode(errors="replace")

    def apply_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Writes messages with the checkpoint's chat template and cuts the result into tokens.

        The template alone decides whether the prompt starts with BOS, as in transformers: nothing
        is added to what it writes, so BOS never comes twice.

        Args:
            messages: dicts with `role` and `content`.
            add_generation_prompt: end with the start of the assistant's turn.

        Returns:
            The token ids.

        Raises:
            InputError: if there is no template, or it does not accept the messages.
        """
        text = self.chat_text(messages, add_generation_prompt=add_generation_prompt)
        return self.encode(text, add_special=False)

    def chat_text(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """What `apply_chat` cuts into tokens."""
        if self.chat_template is None:
            raise InputError(
                "messages need a chat template and this checkpoint has none; pass a raw prompt."
            )
        return chat.render(
            self.chat_template,
            messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=self._piece(self.bos_id),
            eos_token=self._piece(self.eos_id),
        )

    def _piece(self, token: int | None) -> str:
        return "" if token is None else self.backend.piece(token)

    def save(self, directory: Path) -> None:
        """Writes the vocabulary file unchanged, and the settings beside it.

        Args:
            directory: an existing folder; the files in it are replaced.
        """
        directory = Path(directory)
        (directory / self.backend.file_name).write_bytes(self.backend.raw)
        config = dict(self.config)
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        _write_json(directory / tokenizer_files.CONFIG, config)
        generation = {
            **self.generation,
            "bos_token_id": self.bos_id,
            "eos_token_id": list(self.stop_tokens),
        }
        filled = {name: value for name, value in generation.items() if value not in (None, [])}
        _write_json(directory / tokenizer_files.GENERATION, filled)


class TextStream:
    """Turns tokens into text piece by piece; a character appears when its last byte has arrived."""

    def __init__(self, tokenizer: Tokenizer):
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, tokens: Sequence[int]) -> str:
        """Adds tokens and returns the characters that are complete now."""
        return self._decoder.decode(_join(self._token_bytes, tokens))

    def flush(self) -> str:
        """Ends the text and returns what is left; an unfinished character becomes U+FFFD."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def load_tokenizer(directory: Path) -> Tokenizer | None:
    """Reads the tokenizer of a checkpoint folder as transformers 4 and 5 write it.

    Args:
        directory: a folder with tokenizer.json, tokenizer.model, or vocab.json and merges.txt of
            a class that is known, and settings beside it.

    Returns:
        The tokenizer, or None if the folder has none of these.

    Raises:
        CorruptCheckpointError: if a file is damaged.
        UnsupportedError: if the vocabulary is of a kind that is not supported.
    """
    files = tokenizer_files.read_files(Path(directory))
    if files is None:
        return None
    raw = tokenizer_files.read_vocab(files)
    if files.vocab.name != SentencePieceBackend.file_name:
        backend: Backend = JsonBackend(raw, files.added, str(files.vocab))
    else:
        backend = SentencePieceBackend(
            raw,
            files.added,
            prefix_everywhere=files.config.get("legacy") is not False,
            source=str(files.vocab),
        )
    bos_id = _named(backend, files.bos_token, backend.bos_id)
    eos_ids = [_named(backend, files.eos_token, backend.eos_id), *files.eos_ids]
    add_bos = files.config.get("add_bos_token")
    if not isinstance(add_bos, bool):
        add_bos = bos_id is not None and backend.adds_bos(bos_id)
    stop_tokens = _stop_tokens(backend, eos_ids)
    tokenizer = Tokenizer(
        backend=backend,
        bos_id=bos_id,
        eos_id=next((token for token in eos_ids if token is not None), None),
        stop_tokens=stop_tokens,
        chat_template=files.chat_template,
        add_bos=add_bos,
        config=files.config,
        generation=files.generation,
    )
    return _checked(tokenizer, str(files.vocab))


def tokenizer_from_gguf(metadata: dict[str, Any]) -> Tokenizer | None:
    """Builds the tokenizer that the metadata of a GGUF file describes.

    Args:
        metadata: the raw GGUF keys (`tokenizer.ggml.model`, ...) with Python values.

    Returns:
        The tokenizer, or None if the file carries no vocabulary.

    Raises:
        CorruptCheckpointError: if the metadata is damaged.
        UnsupportedError: if the vocabulary is of a kind that is not supported.
    """
    vocab = gguf_vocab(metadata)
    if vocab is None:
        return None
    source = f"the GGUF file's {vocab.file_name}"
    if vocab.file_name == JsonBackend.file_name:
        backend: Backend = JsonBackend(vocab.raw, {}, source)
    else:
        backend = SentencePieceBackend(vocab.raw, {}, prefix_everywhere=True, source=source)
    tokenizer = Tokenizer(
        backend=backend,
        bos_id=vocab.bos_id,
        eos_id=vocab.eos_id,
        stop_tokens=_stop_tokens(backend, [vocab.eos_id, *vocab.turn_ends]),
        chat_template=vocab.chat_template,
        add_bos=vocab.add_bos,
        config=_gguf_config(vocab, backend),
    )
    return _checked(tokenizer, source)


def _gguf_config(vocab: GgufVocab, backend: Backend) -> dict[str, Any]:
    """The tokenizer_config.json with which transformers reads the vocabulary the same way."""
    named = {
        "bos": vocab.bos_id,
        "eos": vocab.eos_id,
        "unk": vocab.unknown_id,
        "pad": vocab.padding_id,
    }
    config: dict[str, Any] = {
        f"{name}_token": backend.piece(token) for name, token in named.items() if token is not None
    }
    config["add_bos_token"] = vocab.add_bos
    config["clean_up_tokenization_spaces"] = False
    if backend.kind == JsonBackend.kind:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        return config
    # Gemma is the family without a leading space; its class in transformers adds none either.
    config["tokenizer_class"] = "LlamaTokenizer" if vocab.add_space_prefix else "GemmaTokenizer"
    config["legacy"] = True
    config["add_prefix_space"] = vocab.add_space_prefix
    return config


def _stop_tokens(backend: Backend, eos_ids: Sequence[int | None]) -> tuple[int, ...]:
    known = (backend.token_id(piece) for piece in TURN_ENDS)
    ends = [token for token in known if token is not None and token in backend.special]
    return tuple(dict.fromkeys(token for token in [*eos_ids, *ends] if token is not None))


def _named(backend: Backend, piece: str | None, default: int | None) -> int | None:
    return default if piece is None else backend.token_id(piece)


def _checked(tokenizer: Tokenizer, source: str) -> Tokenizer:
    """Refuses at load time what would otherwise fail in the middle of a generation."""
    for token in tokenizer.stop_tokens:
        tokenizer_files.check_id(token, tokenizer.vocab_size, f"the stop token of {source}")
    return tokenizer


def _join(token_bytes: Sequence[bytes], tokens: Sequence[int]) -> bytes:
    size = len(token_bytes)
    lowest = min(tokens, default=0)
    if lowest < 0:
        raise InputError(f"token {lowest} is negative; token ids start at 0.")
    # A model may have more rows than its tokenizer has tokens; those rows stand for no text.
    return b"".join([token_bytes[token] for token in tokens if token < size])


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
