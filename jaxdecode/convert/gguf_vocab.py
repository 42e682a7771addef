"""Turns the tokenizer keys of a GGUF file into a tokenizer.json or a sentencepiece model.

Source of the defaults and of the splitting rules: llama.cpp (`llama-vocab.cpp`) and the
tokenizer.json files of the models named beside each rule.
"""

import json
from typing import Any, NamedTuple

from sentencepiece import sentencepiece_model_pb2 as model_pb2

from jaxdecode.errors import CorruptCheckpointError, UnsupportedError, near_matches

_KEY = "tokenizer.ggml."
_SPACE = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = (
    _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"


class _Splitting(NamedTuple):
    """How a byte-level vocabulary cuts a text before merging: each pattern cuts further."""

    patterns: tuple[str, ...]
    whole_words_first: bool = False  # a word that is a token needs no merges (Llama 3)
    nfc: bool = False
    add_bos: bool = False


_SMOLLM = _Splitting((r"\p{N}", _GPT2))
_LLAMA_BPE = _Splitting((_LLAMA3,), whole_words_first=True, add_bos=True)
_QWEN2 = _Splitting((_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),), nfc=True)
_SPLITTINGS = {
    "default": _Splitting((_PUNCTUATION, _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _Splitting((_GPT2,)),
    "smollm": _SMOLLM,
    "starcoder": _SMOLLM,
    "refact": _SMOLLM,
    "command-r": _SMOLLM,
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _Splitting((_TEKKEN,), whole_words_first=True, add_bos=True),
}


class GgufVocab(NamedTuple):
    """The vocabulary file that a GGUF file's metadata stands for, and the named tokens."""

    file_name: str
    raw: bytes
    bos_id: int | None
    eos_id: int | None
    unknown_id: int | None
    padding_id: int | None
    turn_ends: tuple[int, ...]
    add_bos: bool
    add_space_prefix: bool
    chat_template: str | None


def gguf_vocab(metadata: dict[str, Any]) -> GgufVocab | None:
    """Reads the tokenizer keys of a GGUF file; None if it carries no vocabulary.

    Args:
        metadata: the raw GGUF keys (`tokenizer.ggml.model`, ...) with Python values.

    Raises:
        UnsupportedError: if the vocabulary is of a kind, or cuts text in a way, that we do not
        know. CorruptCheckpointError: if the keys disagree with each other.
    """
    model = metadata.get(_KEY + "model")
    if model in (None, "none", "no_vocab"):
        return None
    if model not in ("gpt2", "llama"):
        raise UnsupportedError(
            f"{_KEY}model is {model!r}; supported are 'gpt2' (byte-level BPE) and "
            "'llama' (sentencepiece)."
        )
    tokens = _list(metadata, "tokens", str)
    types = _list(metadata, "token_type", int, len(tokens)) or [_NORMAL] * len(tokens)
    ids = {
        name: _token_id(metadata, name, len(tokens))
        for name in ("bos", "eos", "unknown", "padding")
    }
    splitting = _splitting(metadata) if model == "gpt2" else None
    add_bos = _flag(metadata, "add_bos_token", splitting.add_bos if splitting else True)
    add_bos = add_bos and ids["bos"] is not None
    space = _flag(metadata, "add_space_prefix", splitting is None)
    if splitting:
        bos = tokens[ids["bos"]] if add_bos and ids["bos"] is not None else None
        raw = _json_file(tokens, types, _merges(metadata), splitting, bos)
    else:
        raw = _model_file(tokens, types, _list(metadata, "scores", float, len(tokens)), ids, space)
    ends = (_token_id(metadata, name, len(tokens)) for name in ("eot", "eom"))
    template = metadata.get("tokenizer.chat_template")
    return GgufVocab(
        file_name="tokenizer.json" if splitting else "tokenizer.model",
        raw=raw,
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        unknown_id=ids["unknown"],
        padding_id=ids["padding"],
        turn_ends=tuple(token for token in ends if token is not None),
        add_bos=add_bos,
        add_space_prefix=space,
        chat_template=template if isinstance(template, str) else None,
    )


def byte_level_file(vocabulary: dict[str, int], merges: list[str], splitting: str) -> bytes:
    """Writes vocab.json and merges.txt, the older pair of files, as one tokenizer.json.

    Args:
        vocabulary: ids from 0 on by piece, added tokens not among them.
        merges: two pieces each, in order.
        splitting: name of the rule that cuts a text before merging.

    Raises:
        CorruptCheckpointError: ids are not 0, 1, 2, ..., or a merge is not two pieces.
    """
    tokens = sorted(vocabulary, key=lambda piece: vocabulary[piece])
    if [vocabulary[piece] for piece in tokens] != list(range(len(tokens))):
        raise CorruptCheckpointError("vocab.json: ids are not those from 0 on, each once.")
    pairs = _merges({_KEY + "merges": merges})
    return _json_file(tokens, [_NORMAL] * len(tokens), pairs, _SPLITTINGS[splitting], None)


def _splitting(metadata: dict[str, Any]) -> _Splitting:
    name = metadata.get(_KEY + "pre", "default")
    if name not in _SPLITTINGS:
        raise UnsupportedError(
            f"{_KEY}pre is {name!r}, a way to cut text that is not known here; supported are "
            f"{', '.join(_SPLITTINGS)}.{near_matches(str(name), list(_SPLITTINGS))}"
        )
    return _SPLITTINGS[name]


def _json_file(
    tokens: list[str],
    types: list[int],
    merges: list[tuple[str, str]],
    splitting: _Splitting,
    bos: str | None,
) -> bytes:
    """Writes a byte-level BPE vocabulary as tokenizer.json; `bos` is put before every text."""
    vocabulary = {piece: token for token, piece in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        _report_duplicate(tokens)
    added = [
        _added_token(token, tokens[token], special=kind in (_CONTROL, _UNKNOWN))
        for token, kind in enumerate(types)
        if kind in (_CONTROL, _UNKNOWN, _USER_DEFINED)
    ]
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in splitting.patterns
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if splitting.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": _bos_processor(bos, vocabulary[bos]) if bos is not None else None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": splitting.whole_words_first,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    return json.dumps(content, ensure_ascii=False).encode(errors="surrogatepass")


def _added_token(token: int, content: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token, "content": content, **flags, "special": special}


def _bos_processor(bos: str, bos_id: int) -> dict[str, Any]:
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def _model_file(
    tokens: list[str],
    types: list[int],
    scores: list[float],
    ids: dict[str, int | None],
    space: bool,
) -> bytes:
    """Writes a sentencepiece BPE vocabulary as tokenizer.model."""
    if len(set(tokens)) != len(tokens):
        _report_duplicate(tokens)
    model = model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue] (made at import)
    unknown = ids["unknown"] if ids["unknown"] is not None else 0
    for token, (piece, kind, score) in enumerate(zip(tokens, types, scores, strict=True)):
        # GGUF stores user-defined tokens as plain text; sentencepiece looks for them after
        # escaping.
        text = piece.replace(" ", _SPACE) if kind == _USER_DEFINED else piece
        if not text or kind not in range(_NORMAL, _BYTE + 1):
            raise CorruptCheckpointError(
                f"GGUF token {token} is {piece!r} of unusable type {kind}."
            )
        # sentencepiece wants exactly one unknown token; Gemma's GGUF files call theirs a control
        # token.
        kind = _CONTROL if kind == _UNKNOWN else kind
        model.pieces.add(piece=text, score=score, type=_UNKNOWN if token == unknown else kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(tokens)
    trainer.byte_fallback = _BYTE in types
    trainer.unk_id, trainer.unk_piece = unknown, tokens[unknown]
    for name, field in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        token = ids[name]
        setattr(trainer, f"{field}_id", -1 if token is None else token)
        if token is not None:
            setattr(trainer, f"{field}_piece", tokens[token])
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = space
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return model.SerializeToString()


def _report_duplicate(tokens: list[str]) -> None:
    seen: dict[str, int] = {}
    for token, piece in enumerate(tokens):
        if piece in seen:
            raise CorruptCheckpointError(
                f"{_KEY}tokens: {piece!r} is both token {seen[piece]} and token {token}."
            )
        seen[piece] = token


def _merges(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    for index, merge in enumerate(_list(metadata, "merges", str)):
        left, _, right = merge.partition(" ")
        if not left or not right:
            raise CorruptCheckpointError(
                f"{_KEY}merges[{index}] is {merge!r}; expected two pieces."
            )
        pairs.append((left, right))
    return pairs


def _list(metadata: dict[str, Any], name: str, kind: type, size: int | None = None) -> list:
    """Reads one list of the vocabulary; only token_type may be missing."""
    values = metadata.get(_KEY + name)
    if values is None and name == "token_type":
        return []
    if not isinstance(values, list) or not values:
        raise CorruptCheckpointError(
            f"{_KEY}{name} is missing or not a list; the GGUF file is damaged."
        )
    wanted = (int, float) if kind is float else (kind,)
    wrong = next((value for value in values if not isinstance(value, wanted)), None)
    if wrong is not None:
        raise CorruptCheckpointError(
            f"{_KEY}{name} holds {wrong!r}; expected only {kind.__name__}."
        )
    if size is not None and len(values) != size:
        raise CorruptCheckpointError(f"{_KEY}{name} has {len(values)} entries for {size} tokens.")
    return values


def _token_id(metadata: dict[str, Any], name: str, size: int) -> int | None:
    token = metadata.get(f"{_KEY}{name}_token_id")
    if token is None:
        return None
    if not isinstance(token, int) or not 0 <= token < size:
        raise CorruptCheckpointError(
            f"{_KEY}{name}_token_id is {token!r}; expected 0 to {size - 1}."
        )
    return token


def _flag(metadata: dict[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(_KEY + name, default)
    if not isinstance(value, bool):
        raise CorruptCheckpointError(f"{_KEY}{name} is {value!r}; expected true or false.")
    return value
