"""Chat templates: jinja programs out of untrusted files that write messages as one text."""

import datetime
import functools
from collections.abc import Mapping, Sequence

import jinja2

from jaxdecode.convert import sandbox
from jaxdecode.errors import InputError, UnsafeCheckpointError

MAX_TEMPLATE = 250_000  # characters; the longest published templates have about 30,000


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    add_generation_prompt: bool,
    bos_token: str,
    eos_token: str,
) -> str:
    """Writes messages as the one text the model was trained on.

    Args:
        template: the checkpoint's jinja template.
        messages: dicts with `role` and `content`, both text.
        add_generation_prompt: end with the start of the assistant's turn.
        bos_token: what the template writes for `bos_token`.
        eos_token: what the template writes for `eos_token`.

    Returns:
        The text.

    Raises:
        InputError: if the messages have the wrong form, or the template rejects them or fails.
        UnsafeCheckpointError: if the template reaches for Python's internals or exceeds the limits.
    """
    _check_messages(messages)
    if len(template) > MAX_TEMPLATE:
        raise UnsafeCheckpointError(
            f"the chat template has {len(template)} characters; at most {MAX_TEMPLATE} are allowed."
        )
    try:
        with sandbox.budget():
            pieces = _compiled(template).generate(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                bos_token=bos_token,
                eos_token=eos_token,
            )
            return sandbox.collect(pieces)
    except jinja2.exceptions.SecurityError as error:
        raise UnsafeCheckpointError(f"the chat template was stopped: {error}") from error
    except jinja2.TemplateError as error:
        raise InputError(f"the chat template failed on these messages: {error}") from error
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        NameError,
        RecursionError,
        SyntaxError,
        TypeError,
        ValueError,
    ) as error:
        # A template is a program: it can divide by zero, recurse without end, or call wrongly.
        raise InputError(f"the chat template failed: {type(error).__name__}: {error}") from error


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    made = sandbox.environment()
    made.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return made.from_string(template)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _check_messages(messages: object) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise InputError(f"messages must be a list of dicts, got {type(messages).__name__}.")
    if not messages:
        raise InputError("messages is empty; give at least one {'role': ..., 'content': ...}.")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InputError(f"messages[{index}] must be a dict, got {type(message).__name__}.")
        for field in ("role", "content"):
            if not isinstance(message.get(field), str):
                got = type(message[field]).__name__ if field in message else "nothing"
                raise InputError(f"messages[{index}].{field} must be text, got {got}.")
        extra = [field for field in message if field not in ("role", "content")]
        if extra:
            raise InputError(
                f"messages[{index}].{extra[0]} is not supported; use role and content only."
            )
