"""Prompts of the command line: one text, one chat message, or the lines of a JSONL file."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxdecode import jsonl
from jaxdecode.errors import InputError

if TYPE_CHECKING:
    from jaxdecode.api import LanguageModel

_FORMS = ("prompt", "messages", "tokens")
_WANTED = (
    'expected an object with exactly one of "prompt" (text), "messages" (list) or "tokens" (list '
    'of ids), and optionally "seed" (integer)'
)

NO_CATEGORY = "all"
# Spec-Bench counts these of its categories as one of its six tasks.
_MT_BENCH = [
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
]
_ParseLine = Callable[[dict[str, Any], str], "PromptLine"]


@dataclasses.dataclass(frozen=True)
class PromptLine:
    """One prompt and where it came from.

    Attributes:
        where: what error messages call it: `FILE:LINE`, or the option.
        prompt: what `jaxdecode.generate` takes.
        seed: the line's own seed, if it has one.
        category: what kind of prompt a suite says it is.
    """

    where: str
    prompt: dict[str, Any]
    seed: int | None = None
    category: str = NO_CATEGORY


def read_prompts(name: str) -> list[PromptLine]:
    """Prompts of a JSONL file, or of standard input if `name` is "-"; blank lines are skipped.

    Raises:
        InputError: naming file and line of the first line that cannot be used.
    """
    return _read("--prompts", name, _prompt_line)


def count_prompts(name: str) -> int:
    """Prompts of a JSONL file, whatever is in them.

    Raises:
        InputError: it cannot be read, or there are none.
    """
    if not (num := sum(1 for _ in jsonl.lines(name, option="--prompts"))):
        raise _no_prompts(name)
    return num


def parse_prompt(line: bytes, where: str) -> PromptLine:
    """The prompt of one line of such a file.

    Raises:
        InputError: the line cannot be used; the message begins with `where`.
    """
    return _prompt_line(jsonl.parse(line, where, _WANTED), where)


def read_suite(name: str, option: str = "--suite") -> list[PromptLine]:
    """Prompts with their categories: lines as `read_prompts` takes, or those of Spec-Bench.

    A line may have a "category". Of a line with "turns" the first one is used, as a user's message.

    Raises:
        InputError: naming file and line of the first line that cannot be used.
    """
    return _read(option, name, _suite_line)


def tokenize_all(lm: "LanguageModel", lines: list[PromptLine]) -> list[list[int]]:
    """Token ids of all prompts, so that a bad last line does not cost the work on the others."""
    return [tokenize_line(lm, line) for line in lines]


def tokenize_line(lm: "LanguageModel", line: PromptLine) -> list[int]:
    """Token ids of one prompt.

    Raises:
        InputError: it cannot be used; the message begins with where it stands.
    """
    from jaxdecode.options import tokenize

    try:
        return tokenize(line.prompt, lm.tokenizer, lm.config)
    except InputError as error:
        raise InputError(f"{line.where}: {error}") from error


def _read(option: str, name: str, parse_line: _ParseLine) -> list[PromptLine]:
    lines = [
        parse_line(content, where)
        for where, content in jsonl.read(name, option=option, wanted=_WANTED)
    ]
    if not lines:
        raise _no_prompts("<stdin>" if name == "-" else name)
    return lines


def _no_prompts(where: str) -> InputError:
    return InputError(f"{where}: there are no prompts; give one JSON object per line.")


def _prompt_line(content: dict[str, Any], where: str) -> PromptLine:
    forms = [form for form in _FORMS if form in content]
    unknown = sorted(set(content) - {*_FORMS, "seed"})
    if len(forms) != 1 or unknown:
        raise InputError(f"{where}: {_WANTED}, got the keys {sorted(content)}.")
    _check_form(forms[0], content[forms[0]], where)
    seed = content.get("seed")
    if "seed" in content and (type(seed) is not int or not -(2**63) <= seed < 2**63):
        raise InputError(f'{where}: "seed" is {seed!r}, expected a 64-bit integer.')
    return PromptLine(where, {forms[0]: content[forms[0]]}, seed)


def _suite_line(content: dict[str, Any], where: str) -> PromptLine:
    content = dict(content)
    category = content.pop("category", NO_CATEGORY)
    if not isinstance(category, str) or not category:
        raise InputError(f'{where}: "category" is {category!r}, expected a name.')
    if "turns" not in content:
        return dataclasses.replace(_prompt_line(content, where), category=category)
    turns = content["turns"]
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str) or not turns[0]:
        raise InputError(f'{where}: "turns" must be a list of texts, got {turns!r}.')
    messages = [{"role": "user", "content": turns[0]}]
    category = "mt_bench" if category in _MT_BENCH else category
    return PromptLine(where, {"messages": messages}, category=category)


def _check_form(form: str, value: Any, where: str) -> None:
    wanted = str if form == "prompt" else list
    if not isinstance(value, wanted):
        name = "text" if wanted is str else "a list"
        raise InputError(f'{where}: "{form}" must be {name}, got a JSON {jsonl.type_name(value)}.')
    if not value:
        raise InputError(f'{where}: "{form}" is empty.')
