"""Reads the small JSON files around a vocabulary, as transformers 4 and 5 write them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxdecode.convert.backends import MAX_VOCAB, AddedToken
from jaxdecode.convert.gguf_vocab import byte_level_file
from jaxdecode.errors import CorruptCheckpointError

CONFIG = "tokenizer_config.json"
GENERATION = "generation_config.json"
_VOCABS = ("tokenizer.json", "tokenizer.model")
# The older pair of files does not say how a text is cut before merging; the class does.
PAIR = ("vocab.json", "merges.txt")
_SPLITTINGS = {"Qwen2Tokenizer": "qwen2", "Qwen2TokenizerFast": "qwen2", "DreamTokenizer": "qwen2"}


class TokenizerFiles(NamedTuple):
    """What a checkpoint folder says about its tokenizer."""

    vocab: Path
    added: dict[int, AddedToken]
    bos_token: str | None
    eos_token: str | None
    eos_ids: list[int]
    chat_template: str | None
    config: dict[str, Any]
    generation: dict[str, Any]


def read_files(directory: Path) -> TokenizerFiles | None:
    """Collects the settings of a folder; None if it has no vocabulary file.

    Keys that would make transformers run code from the folder (`auto_map`) are dropped.
    """
    vocab = next((directory / name for name in _VOCABS if (directory / name).is_file()), None)
    config = _read_json(directory / CONFIG)
    if vocab is None and has_pair(directory):
        vocab = directory / PAIR[0]
    if vocab is None:
        return None
    generation = _read_json(directory / GENERATION)
    names = {**_read_json(directory / "special_tokens_map.json"), **config}
    kept = {
        name: value for name, value in config.items() if name not in ("auto_map", "chat_template")
    }
    return TokenizerFiles(
        vocab=vocab,
        added=_added_tokens(config, directory),
        bos_token=_content(names.get("bos_token")),
        eos_token=_content(names.get("eos_token")),
        eos_ids=_eos_ids(generation, directory / GENERATION),
        chat_template=_chat_template(config, directory),
        config=kept,
        generation={name: value for name, value in generation.items() if name != "auto_map"},
    )


def has_pair(directory: Path) -> bool:
    """Whether the older pair of files is there, and it is known how to cut a text for it."""
    known = _read_json(directory / CONFIG).get("tokenizer_class") in _SPLITTINGS
    return known and all((directory / name).is_file() for name in PAIR)


def read_vocab(files: TokenizerFiles) -> bytes:
    """The bytes of the vocabulary file; of the older pair of files, those of a tokenizer.json.

    Raises:
        CorruptCheckpointError: the pair makes no vocabulary.
    """
    if files.vocab.name != PAIR[0]:
        return files.vocab.read_bytes()
    vocabulary = _read_json(files.vocab)
    for piece, token in vocabulary.items():
        check_id(token, MAX_VOCAB, f"{files.vocab}: {piece!r}")
    lines = _read_text(files.vocab.with_name(PAIR[1])).split("\n")
    merges = [line for line in lines if line and not line.startswith("#version:")]
    return byte_level_file(vocabulary, merges, _SPLITTINGS[files.config["tokenizer_class"]])


def check_id(token: object, size: int, source: str) -> int:
    """Returns the token id, or raises CorruptCheckpointError if it is not in [0, size)."""
    if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < size:
        raise CorruptCheckpointError(
            f"{source} is {token!r}; expected a token id from 0 to {size - 1}."
        )
    return token


def _eos_ids(generation: Mapping[str, Any], source: Path) -> list[int]:
    listed = generation.get("eos_token_id")
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    return [check_id(token, MAX_VOCAB, f"{source}: eos_token_id") for token in ids]


def _chat_template(config: Mapping[str, Any], directory: Path) -> str | None:
    """Finds the template: its own file first, as in transformers, then the configuration."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return _read_text(path)
    in_file = _read_json(directory / "chat_template.json").get("chat_template")
    template = in_file if in_file is not None else config.get("chat_template")
    if isinstance(template, list):
        named = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, dict)
        }
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CorruptCheckpointError(
            f"{directory}: chat_template must be text, got {template!r:.80}."
        )
    return template


def _added_tokens(config: Mapping[str, Any], directory: Path) -> dict[int, AddedToken]:
    added: dict[int, AddedToken] = {}
    for content, token in _read_json(directory / "added_tokens.json").items():
        added[check_id(token, MAX_VOCAB, f"{directory}: the added token {content!r}")] = AddedToken(
            content, special=False
        )
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise CorruptCheckpointError(
            f"{directory / CONFIG}: added_tokens_decoder must be an object."
        )
    for key, entry in listed.items():
        content = _content(entry)
        if not key.isdecimal() or not content:
            raise CorruptCheckpointError(
                f"{directory / CONFIG}: added_tokens_decoder[{key!r}] is {entry!r:.80}; expected "
                "a token id and a token with content."
            )
        token = check_id(int(key), MAX_VOCAB, f"{directory / CONFIG}: an added token")
        special = isinstance(entry, dict) and entry.get("special") is True
        added[token] = AddedToken(content, special)
    return added


def _content(token: object) -> str | None:
    """A token is written as text, or as an object with its text in `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise CorruptCheckpointError(f"{path}: expected a JSON object.")
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorruptCheckpointError(f"{path}: not UTF-8 ({error}).") from error
