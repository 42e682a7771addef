"""Texts with open slots: `[[MASK:8]]` stands for eight tokens that a model fills in."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdecode import checks
from jaxdecode.convert.tokenizer import Tokenizer
from jaxdecode.errors import InputError
from jaxdecode.models.config import ModelConfig

MARK = re.compile(r"\[\[MASK:(\d+)\]\]")
FORMS = 'use text with marks such as "[[MASK:8]]", or {"tokens": [...]} with None for open slots'


class Template(tuple[int, ...]):
    """Token ids of a row, -1 where a slot is undecided; only slots after the first are."""

    __slots__ = ()

    @property
    def start(self) -> int:
        """The first undecided slot."""
        return self.index(-1)


def start_of(row: Sequence[int]) -> int:
    """The first slot of a row that is to be decided: after its prompt, or in its template."""
    return row.start if isinstance(row, Template) else len(row)


def read(
    template: str | Mapping[str, Any], tokenizer: Tokenizer | None, config: ModelConfig
) -> Template:
    """The row of a template.

    Args:
        template: text with marks, or `{"tokens": [...]}` with None for every undecided slot.
        tokenizer: for text.
        config: the model's.

    Raises:
        InputError: unusable form, nothing undecided, nothing given before it, ids outside the
            vocabulary, longer than the context.
    """
    if isinstance(template, str):
        slots = _encode(template, tokenizer)
    elif isinstance(template, Mapping) and set(template) == {"tokens"}:
        slots = [-1 if token is None else token for token in template["tokens"]]
        for token in template["tokens"]:
            if token is not None:
                checks.integer("template token id", token, low=0, high=config.vocab_size - 1)
    else:
        raise InputError(f"a template is a {type(template).__name__}; {FORMS}.")
    if -1 not in slots:
        raise InputError(f"the template has nothing to fill in; {FORMS}.")
    if slots[0] == -1:
        raise InputError("the template begins with an open slot; give at least one token first.")
    if len(slots) > config.max_length:
        raise InputError(
            f"the template has {len(slots)} tokens, but the model's context is "
            f"{config.max_length}; shorten it."
        )
    return Template(slots)


def _encode(text: str, tokenizer: Tokenizer | None) -> list[int]:
    if tokenizer is None:
        raise InputError(
            "this checkpoint has no tokenizer, so a template cannot be text; give "
            '{"tokens": [...]} with None for open slots.'
        )
    # Odd parts are the numbers of the marks between the texts.
    parts = MARK.split(text)
    slots: list[int] = []
    for i, part in enumerate(parts):
        if i % 2:
            if not int(part):
                raise InputError("[[MASK:0]] in the template stands for no token; give 1 or more.")
            slots += [-1] * int(part)
        elif part or i == 0:
            slots += tokenizer.encode(part, add_special=i == 0)
    return slots
