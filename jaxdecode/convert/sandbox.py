"""A jinja sandbox for untrusted templates that also bounds their time and memory.

Jinja's sandbox refuses access to Python's internals. It allows endless loops and texts that fill
the memory, so this one counts work: every loop round and call costs a step, and so do 64 characters
handled.
"""

import contextlib
import contextvars
import functools
import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor
from jinja2.exceptions import SecurityError

MAX_STEPS = (
    1_000_000  # a thousand messages through the longest published templates need about 100,000
)
MAX_TEXT = 16_000_000  # characters, or list entries, of any one value
_MAX_NUMBER = 100_000  # for widths, counts and lengths; also jinja's own limit of range()
_MAX_BITS = 4096  # of any integer a template computes
_STEP_CHARACTERS = 64
# Meant for web pages, and slow enough on long texts to hang.
_DROPPED_FILTERS = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
_WIDTH = re.compile(r"\d{5}")  # no format needs a field of 10,000 characters

_steps_left: contextvars.ContextVar[list[int]] = contextvars.ContextVar("template_steps_left")


@contextlib.contextmanager
def budget(steps: int = MAX_STEPS) -> Iterator[None]:
    """Gives everything rendered inside the block one common number of steps."""
    token = _steps_left.set([steps])
    try:
        yield
    finally:
        _steps_left.reset(token)


def collect(pieces: Iterable[Any]) -> str:
    """Joins texts, and stops before the result is too long."""
    parts, length = [], 0
    for piece in pieces:
        text = str(_bounded(piece))
        length += len(text)
        _check_size(length)
        parts.append(text)
    return "".join(parts)


def environment() -> jinja2.Environment:
    """Returns the environment of chat templates, with the filters transformers gives them."""
    made = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # constant folding would run filters while the template is compiled
        finalize=_bounded,
        extensions=[jinja2.ext.loopcontrols, _Generation],
    )
    made.filters["tojson"] = _to_json
    guarded = {name: _guarded(function) for name, function in made.filters.items()}
    for name in _DROPPED_FILTERS:
        guarded.pop(name)
    made.filters = guarded | {"_counted": _counted, "_bounded": _bounded, "_collect": collect}
    made.globals.pop("lipsum")
    made.globals.update(dict=_make_dict, namespace=_Namespace)
    return made


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox with every loop, call, operator and captured block counted."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, *args: Any, **kwargs: Any) -> jinja2.nodes.Template:
        return _Guard().visit(super()._parse(*args, **kwargs))

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        """Stops at the first look at an unsafe attribute; jinja itself would print nothing."""
        raise SecurityError(f"access to {attribute!r} of a value of type {type(obj).__name__!r}")

    def call(self, context: Any, callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function of the template, with arguments and result of bounded size."""
        method = getattr(callee, "__wrapped__", callee)  # jinja wraps str.format in its own
        owner = getattr(method, "__self__", None)
        _check_call(getattr(callee, "__name__", ""), owner, args, kwargs)
        return _bounded(super().call(context, callee, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Applies an operator whose result can be far larger than its operands."""
        del context
        if operator == "%" and isinstance(left, str):
            values = right if isinstance(right, tuple) else (right,)
            _check_call("format", left, values, {})
        elif operator == "+":
            _check_size(_size(left) + _size(right))
        elif operator in ("*", "**"):
            _check_product(operator, left, right)
        return _bounded(_OPERATORS[operator](left, right))


_OPERATORS = {"+": operator.add, "*": operator.mul, "**": operator.pow, "%": operator.mod}


class _Guard(jinja2.visitor.NodeTransformer):
    """Sends loops, joined texts and captured blocks through the functions that count."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.For:
        """Counts the rounds of a loop."""
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_counted")
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Filter:
        """Bounds what `~` joins."""
        self.generic_visit(node)
        return _filtered(jinja2.nodes.List(node.nodes, lineno=node.lineno), "_collect")

    def visit_AssignBlock(self, node: jinja2.nodes.AssignBlock) -> jinja2.nodes.AssignBlock:
        """Bounds what `{% set x %}...{% endset %}` captures."""
        self.generic_visit(node)
        node.filter = _filtered(node.filter, "_bounded")
        return node


def _filtered(node: Any, name: str) -> jinja2.nodes.Filter:
    lineno = node.lineno if node else 1
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=lineno)


class _Generation(jinja2.ext.Extension):
    """Accepts `{% generation %}`, with which training code marks the assistant's text."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        """Keeps the body and drops the marks."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """A namespace that refuses names such as `__class__`, which Python itself would look up."""

    def __init__(*args: Any, **kwargs: Any):  # no `self` by name: a template may set `self=...`
        for name in [*kwargs, *(key for pairs in args[1:] for key in dict(pairs))]:
            _check_name(name)
        jinja2.utils.Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"the namespace attribute {name!r}")


def _make_dict(*args: Any, **kwargs: Any) -> dict:
    """Stands in for the class `dict`, whose methods would change the messages in place."""
    return dict(*args, **kwargs)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _guarded(function: Callable) -> Callable:
    """Wraps a filter; `wraps` keeps the mark by which jinja knows what to pass first."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_call(function.__name__.removeprefix("do_"), None, args, kwargs)
        return _bounded(function(*args, **kwargs))

    return checked


def _check_call(name: str, owner: object, args: tuple, kwargs: dict[str, Any]) -> None:
    """Refuses arguments from which one library call could make an enormous value."""
    values = [owner, *args, *kwargs.values()]
    for value in values:
        _bounded(value)
    numbers = [value for value in values if isinstance(value, int | float)]
    # A filter's first number is what it formats, `range` has its own limit: only the rest are
    # widths.
    if any(abs(number) > _MAX_NUMBER for number in numbers) and name not in ("range", "string"):
        raise SecurityError(f"a number over {_MAX_NUMBER} as an argument of {name!r}")
    texts = [value for value in values if isinstance(value, str)]
    if name in ("format", "format_map"):
        _check_widths(texts)
    elif name in ("replace", "join"):
        sizes = sorted((_size(value) for value in values), reverse=True)[:2]
        _check_size((sizes[0] + 1) * (sizes[1] + 1 if len(sizes) > 1 else 1))


def _check_widths(texts: list[str]) -> None:
    if any(_WIDTH.search(text) for text in texts):
        raise SecurityError("a format with a field of 10,000 characters or more")


def _check_product(symbol: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        factor = max(right, 1) if symbol == "**" else 1
        if left.bit_length() * factor + right.bit_length() > _MAX_BITS:
            raise SecurityError(f"a number of more than {_MAX_BITS} bits")
    for value, count in ((left, right), (right, left)):
        if isinstance(count, int):
            _check_size(_size(value) * count)


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    """Wraps what a loop runs over, so that every round costs a step."""
    for value in values:
        _spend(1)
        yield value


def _bounded(value: Any) -> Any:
    """Passes a value on, and pays for its size."""
    size = _weight(value)
    _check_size(size)
    _spend(1 + size // _STEP_CHARACTERS)
    return value


def _weight(value: Any) -> int:
    """Characters and entries in a value; shared parts of nested lists count every time."""
    total, stack = 0, [value]
    while stack and total <= MAX_TEXT:
        part = stack.pop()
        total += _size(part)
        if isinstance(part, dict):
            stack.extend(part.values())
        elif isinstance(part, list | tuple):
            stack.extend(part)
        if len(stack) > MAX_STEPS:
            raise SecurityError(f"a value with more than {MAX_STEPS} entries")
    return total


def _size(value: object) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | range) else 0


def _check_size(size: int) -> None:
    if size > MAX_TEXT:
        raise SecurityError(f"a value of more than {MAX_TEXT} characters or entries")


def _spend(steps: int) -> None:
    left = _steps_left.get()
    left[0] -= steps
    if left[0] < 0:
        raise SecurityError("too many steps; it may never end")
