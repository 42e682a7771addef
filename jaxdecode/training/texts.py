"""Lines of training data as tokens, with what the model says itself marked: that is to be learned.

A line is an object with one of these; other fields are ignored:

    {"messages": [{"role": ..., "content": ...}, ...]}   every answer of the assistant counts
    {"prompt": text, "completion": text}                  the completion counts
    {"text": text}                                        all of it counts
    {"tokens": [...], "prompt_length": n}                 what follows the first n counts

Nothing is added to a prompt, a completion or a text beyond what a raw prompt gets (BOS where the
checkpoint wants it); special tokens written out become their token. An answer in a chat is what the
model would have generated: from where the chat template asks it to speak to the end of its turn,
without what the template writes behind that.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxdecode import checks, jsonl
from jaxdecode.convert.tokenizer import Tokenizer
from jaxdecode.errors import InputError

_FORMS = ("messages", "text", "prompt", "tokens")
_WANTED = (
    'expected an object with exactly one of "messages" (list), "text", "prompt" (with "completion")'
    ' and "tokens" (with "prompt_length")'
)
# Of a text that counts everywhere, what serves as the prompt to decode from.
_OPENING = 64


class Text(NamedTuple):
    """One text.

    Attributes:
        tokens: its token ids.
        counts: whether a token is to be learned.
        features: what a frozen target says of the tokens: a tree of `[T, ...]` arrays, or None.
    """

    tokens: Int[np.ndarray, "T"]
    counts: Bool[np.ndarray, "T"]
    features: Any = None

    @property
    def prompt(self) -> list[int]:
        """What stands before the first answer; the beginning of a text that counts everywhere."""
        first = int(np.argmax(self.counts))
        return self.tokens[: first or max(1, min(_OPENING, len(self.tokens) // 2))].tolist()


def read_texts(
    name: str,
    *,
    option: str,
    tokenizer: Tokenizer | None,
    vocab_size: int | None = None,
    width: int | None = None,
) -> list[Text]:
    """The texts of a JSONL file; or a .txt file as one text, or as texts of `width` tokens.

    Args:
        name: path of the file.
        option: what errors call it.
        tokenizer: the target's; None allows only lines with tokens.
        vocab_size: the target's; token ids are checked against it.
        width: tokens of the texts that a .txt file is cut into; None does not cut it.

    Raises:
        InputError: naming file and line of the first line that cannot be used.
    """
    if name.endswith(".txt"):
        return _of_file(name, option, tokenizer, width)
    texts = []
    for where, content in jsonl.read(name, option=option, wanted=_WANTED):
        try:
            texts += _texts(content, tokenizer, vocab_size)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    if not texts:
        raise InputError(f"{option} {name}: there are no texts; give one JSON object per line.")
    return texts


def _of_file(name: str, option: str, tokenizer: Tokenizer | None, width: int | None) -> list[Text]:
    if tokenizer is None:
        raise InputError(f"{option} {name}: text needs a tokenizer, and the target has none.")
    try:
        content = Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option} {name}: cannot be read as UTF-8 text ({error}).") from error
    tokens = tokenizer.encode(content, add_special=False)
    if len(tokens) < 2:
        raise InputError(f"{option} {name}: there is no text.")
    size = width or len(tokens)
    parts = [tokens[i : i + size] for i in range(0, len(tokens), size)]
    # A token alone teaches nothing.
    return [_text(part, [(0, len(part))]) for part in parts if len(part) > 1]


def _texts(
    content: Mapping[str, Any], tokenizer: Tokenizer | None, vocab_size: int | None
) -> list[Text]:
    forms = [form for form in _FORMS if form in content]
    if len(forms) != 1:
        raise InputError(f"{_WANTED}, got the keys {sorted(content)}.")
    if forms == ["tokens"]:
        return [_of_tokens(content, vocab_size)]
    if tokenizer is None:
        raise InputError(
            f'"{forms[0]}" needs a tokenizer, and the target has none; give "tokens" and '
            '"prompt_length".'
        )
    if forms == ["messages"]:
        return _of_messages(content["messages"], tokenizer)
    if forms == ["prompt"]:
        return [_of_completion(content, tokenizer)]
    tokens = tokenizer.encode(_filled("text", content))
    return [_text(tokens, [(0, len(tokens))])]


def _text(tokens: Sequence[int], spans: Sequence[tuple[int, int]]) -> Text:
    counts = np.zeros(len(tokens), bool)
    for first, last in spans:
        counts[first:last] = True
    return Text(np.asarray(tokens, np.int32), counts)


def _filled(field: str, content: Mapping[str, Any]) -> str:
    """The text of a field, which must not be empty."""
    if field not in content:
        raise InputError(f'"{field}" is missing; got the keys {sorted(content)}.')
    value = content[field]
    if not isinstance(value, str):
        raise InputError(f'"{field}" must be text, got a JSON {jsonl.type_name(value)}.')
    if not value:
        raise InputError(f'"{field}" is empty; fill it in, or leave the line out.')
    return value


def _of_tokens(content: Mapping[str, Any], vocab_size: int | None) -> Text:
    tokens = content["tokens"]
    if not isinstance(tokens, list):
        raise InputError(f'"tokens" must be a list of ids, got a JSON {jsonl.type_name(tokens)}.')
    high = (vocab_size or 2**31) - 1
    for token in tokens:
        checks.integer('an id in "tokens"', token, low=0, high=high)
    if "prompt_length" not in content:
        raise InputError(
            '"prompt_length" is missing: how many of the tokens are the prompt; 0 if all count.'
        )
    first = content["prompt_length"]
    checks.integer('"prompt_length"', first, low=0)
    if first >= len(tokens):
        raise InputError(
            f'the answer is empty: "prompt_length" is {first}, and there are {len(tokens)} tokens; '
            "leave the line out."
        )
    return _text(tokens, [(first, len(tokens))])


def _of_completion(content: Mapping[str, Any], tokenizer: Tokenizer) -> Text:
    prompt, completion = _filled("prompt", content), _filled("completion", content)
    start = tokenizer.encode("")
    tokens, (place,) = _encoded(tokenizer, prompt + completion, [len(prompt)])
    return _text([*start, *tokens], [(len(start) + place, len(start) + len(tokens))])


def _of_messages(messages: Any, tokenizer: Tokenizer) -> list[Text]:
    """One text; or one per answer, where the template writes earlier turns another way later."""
    turns = _answers(messages)
    # What the model was asked with, and that with its answer.
    asked = [tokenizer.chat_text(messages[:i]) for i in turns]
    said = [tokenizer.chat_text(messages[: i + 1], add_generation_prompt=False) for i in turns]
    for i, before, after in zip(turns, asked, said, strict=True):
        if not after.startswith(before):
            raise InputError(
                f"the chat template does not write messages[{i}] behind the prompt that it gives "
                'for the messages before it; give the texts as "prompt" and "completion".'
            )
    if all(said[-1].startswith(part) for part in (*asked, *said)):
        return [_dialogue(tokenizer, asked, said)]
    pairs = zip(asked, said, strict=True)
    return [_dialogue(tokenizer, [before], [after]) for before, after in pairs]


def _answers(messages: Any) -> list[int]:
    """Which messages are the assistant's; checks what the template does not."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise InputError('"messages" must be a list of objects with "role" and "content".')
    turns = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if not turns:
        raise InputError('"messages" has no answer: none is of the role "assistant".')
    if turns[0] == 0:
        raise InputError('"messages" begins with an answer; put what it answers before it.')
    for i in turns:
        if messages[i].get("content") == "":
            raise InputError(f"the answer messages[{i}] is empty; leave it or the line out.")
    return turns


def _dialogue(tokenizer: Tokenizer, asked: Sequence[str], said: Sequence[str]) -> Text:
    """The last of `said`, in which the answers count: each what follows one of `asked`."""
    cuts = [len(part) for pair in zip(asked, said, strict=True) for part in pair]
    tokens, places = _encoded(tokenizer, said[-1], cuts)
    spans = []
    for first, last in zip(places[::2], places[1::2], strict=True):
        ends = [i for i in range(first, last) if tokens[i] in tokenizer.stop_tokens]
        spans.append((first, ends[-1] + 1 if ends else last))
    return _text(tokens[: spans[-1][1]], spans)


def _encoded(tokenizer: Tokenizer, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Tokens of a text of which none reaches over a cut, and how many stand before each cut.

    What stands before a cut has the tokens it has alone: those that decoding would begin with. Only
    where a token reaches over a cut are the parts encoded apart.
    """
    done: list[int] = []
    start, rest, places = 0, tokenizer.encode(text, add_special=False), []
    for cut in cuts:
        head = tokenizer.encode(text[start:cut], add_special=False)
        if rest[: len(head)] == head:
            places.append(len(done) + len(head))
            continue
        done += head
        start, rest = cut, tokenizer.encode(text[cut:], add_special=False)
        places.append(len(done))
    return done + rest, places
