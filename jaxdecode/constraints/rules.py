"""What a caller may ask of a text's form, checked and in one shape."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxdecode.core.entry import CONSTRAINTS
from jaxdecode.errors import InputError

_WANTED = {
    "json_schema": "a JSON schema as a dict",
    "regex": "a regular expression as text",
    "grammar": "a Lark grammar as text",
}


class Rule(NamedTuple):
    """One constraint; hashable.

    Attributes:
        kind: one of `core.entry.CONSTRAINTS`.
        text: the schema as JSON, the expression, or the grammar.
    """

    kind: str
    text: str


# Every text follows it.
ANYTHING = Rule("regex", r"(.|\n)*")


def read(given: Mapping[str, Any], num_prompts: int) -> list[Rule | None]:
    """The rule of each prompt, None for prompts that may say anything.

    Args:
        given: value of every such option: None, one rule for all prompts, or a list with one
            (or None) per prompt.
        num_prompts: number of prompts.

    Raises:
        InputError: several kinds at once, a value of another type, or a list of another length.
    """
    asked = [kind for kind in CONSTRAINTS if given[kind] is not None]
    if not asked:
        return [None] * num_prompts
    if len(asked) > 1:
        raise InputError(f"{' and '.join(asked)} were both given; a text can have one of them.")
    (kind,) = asked
    value = given[kind]
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [_rule(kind, value)] * num_prompts
    if len(value) != num_prompts:
        raise InputError(
            f"{kind} has {len(value)} values for {num_prompts} prompts; give one, or a list with "
            "one per prompt."
        )
    return [None if one is None else _rule(kind, one) for one in value]


def check(given: Mapping[str, Any]) -> None:
    """As `read`, before the number of prompts is known."""
    lists = [v for v in given.values() if isinstance(v, Sequence) and not isinstance(v, str)]
    read(given, len(lists[0]) if lists else 1)


def _rule(kind: str, value: Any) -> Rule:
    if kind == "json_schema" and isinstance(value, Mapping):
        try:
            return Rule(kind, json.dumps(dict(value)))
        except (TypeError, ValueError) as error:
            raise InputError(f"json_schema is not JSON: {error}.") from error
    if kind != "json_schema" and isinstance(value, str):
        return Rule(kind, value)
    raise InputError(
        f"{kind} is a {type(value).__name__}; it must be {_WANTED[kind]}, or a list with one per "
        "prompt."
    )
