"""Which methods `bench` runs, what each is compared with, and whether it can run at all."""

import dataclasses
import json
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

from jaxdecode import resolve
from jaxdecode.core.entry import Entry
from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError
from jaxdecode.options import Options
from jaxdecode.sampling import warp

_SHARED = {field.name for field in dataclasses.fields(Options)}
_BASELINES = {False: "ar", True: "llada"}


class Line(NamedTuple):
    """A method as asked for: `name`, or `name:option=value:option=value`, which is its label."""

    label: str
    method: str
    options: dict[str, Any]


def baseline_of(fills: bool) -> str:
    """The plain method of a kind of model: one token after the other, or one slot per step."""
    return _BASELINES[fills]


def parse_lines(
    text: str,
    *,
    has_draft: bool = False,
    heads: Container[str] = (),
    temperatures: Sequence[float] = (0.0,),
    fills: bool = False,
) -> tuple[Line, ...]:
    """Lines from `name,name:option=value,L0,all`, the baseline first; each once.

    "all" and levels leave out what needs trained heads or a draft model that are not there, what
    refuses one of the temperatures, policies, and what the model cannot run. A line whose tokens
    must equal those of another one brings it along.

    Args:
        text: what was asked for.
        has_draft: whether there is a draft model.
        heads: kinds of heads that there are.
        temperatures: laws that are asked for.
        fills: whether the model fills slots in any order.
    """

    def can_run(entry: Entry) -> bool:
        refused = "temperature" in entry.refuses and any(temperatures)
        headless = entry.heads is not None and entry.heads not in heads
        lacks = headless or ("draft" in entry.needs and not has_draft)
        # The baseline fills slots, which a model that inserts cannot.
        lacks |= "insertions" in entry.needs
        return not (refused or lacks) and entry.fills == fills and entry.on_loop

    baseline = baseline_of(fills)
    found = [Line(baseline, baseline, {})]
    for part in text.split(","):
        groups = [
            name
            for name, entry in METHODS.items()
            if part.strip() in ("all", entry.level) and can_run(entry)
        ]
        asked = [Line(name, name, {}) for name in groups] or [parse_line(part.strip())]
        found += [other for line in asked for other in _with_reference(line, temperatures)]
    return tuple({line.label: line for line in found}.values())


def parse_line(label: str) -> Line:
    """One line: a method and options of its own."""
    method, *pairs = label.split(":")
    resolve.entry_of(method)
    options = parse_options(label, pairs)
    for name in options:
        if name in _SHARED:
            raise InputError(
                f"method {label!r}: {name} is an option of the whole run, not of one method; the "
                "command has a flag for it."
            )
    return Line(label, method, options)


def parse_options(label: str, pairs: Sequence[str]) -> dict[str, Any]:
    """What `option=value` parts of a label say; values are JSON, or else text."""
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise InputError(
                f"{label!r}: {pair!r} is not usable; write options as "
                "name:option=value:option=value."
            )
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _with_reference(line: Line, temperatures: Sequence[float]) -> list[Line]:
    other = reference(line)
    needed = any(promised(line.method, temperature) for temperature in temperatures)
    return [other, line] if needed else [line]


def reference(line: Line) -> Line:
    """The line whose tokens this one's are compared with: same blocks, same reuse, and so on.

    That is the method that its level is measured against, with those of its options that this one
    knows and does not have by itself.
    """
    entry = METHODS[line.method]
    if line.method == entry.reference:
        return line
    _, usual = resolve.split(entry.reference, {})
    own = {}
    for part in (usual.drafter, usual.verifier, usual.commit):
        if part is not None:
            own |= {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    asked = {**entry.options, **line.options}
    kept = {name: asked[name] for name in own if name in asked and asked[name] != own[name]}
    pairs = [f"{name}={v if isinstance(v, str) else json.dumps(v)}" for name, v in kept.items()]
    return Line(":".join([entry.reference, *pairs]), entry.reference, kept)


def promised(method: str, temperature: float) -> bool:
    """Whether a method must give its reference's tokens."""
    entry = METHODS[method]
    levels = ("L0", "L1") if temperature < warp.GREEDY_BELOW else ("L0",)
    return entry.level in levels and entry.reference in _BASELINES.values()


def check_line(
    line: Line, temperature: float, *, has_draft: bool, heads: Container[str], config: Any
) -> None:
    """Refuses what cannot run, before a model is loaded; no config: whatever the model is."""
    entry = METHODS[line.method]
    resolve.split(line.method, {"temperature": temperature, **line.options})
    if config is not None:
        resolve.check_model(line.method, config)
    if "draft" in entry.needs and not has_draft:
        raise InputError(f"method {line.method!r} needs a draft model: give --draft.")
    if entry.heads is not None and entry.heads not in heads:
        raise InputError(
            f"method {line.method!r} needs trained heads of kind {entry.heads!r}: give --heads."
        )
