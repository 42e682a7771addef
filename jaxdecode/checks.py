"""Refuses values outside their range, by name. Imports nothing heavy: `--help` must be fast."""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

from jaxdecode.errors import InputError


def integer(name: str, value: Any, *, low: int, high: int | None = None) -> None:
    """An integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InputError(f"{name}={value!r} is not an integer.")
    if int(value) < low or (high is not None and int(value) > high):
        wanted = f">= {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"{name}={value} is out of range; it must be {wanted}.")


def number(name: str, value: Any, wanted: str, valid: Callable[[Any], bool]) -> None:
    """A finite number for which `valid` holds; `wanted` says it in words."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not valid(value):
        raise InputError(f"{name}={value!r} is not valid; it must be {wanted}.")


def flag(name: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r} is not valid; it must be true or false.")


def choice(name: str, value: Any, known: Sequence[str]) -> None:
    """One of some words."""
    if value not in known:
        raise InputError(f"{name}={value!r} is not known; use one of {', '.join(known)}.")
