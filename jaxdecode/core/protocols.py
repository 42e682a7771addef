"""The seams: bundles of pure functions that the loop is given. Signatures are fixed and complete.

A bundle is made once per configuration and is a static argument of the compiled loop; parameters
and states are pytrees that pass through it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from jaxdecode.core.types import pytree

# Keys and values by layer: a tuple with one array per layer, or one stacked array; the form of the
# parameters decides. Keys are stored transposed.
Keys = Float[Array, "H B K d T"] | tuple[Float[Array, "B K d T"], ...]
Values = Float[Array, "H B K T d"] | tuple[Float[Array, "B K T d"], ...]
Rows = tuple[Keys, Values]


@pytree
class TargetOutput:
    """One forward pass of the target over T new rows.

    Attributes:
        hidden: final hidden states, normalised, ready for the head.
        rows: keys and values of the new rows; nothing was written.
        taps: hidden states by name: "embed", "layer.I" (output of block I), "final".
    """

    hidden: Float[Array, "B T D"]
    rows: Rows
    taps: dict[str, Float[Array, "B T D"]]


class Target(NamedTuple):
    """The model whose law defines correct.

    forward: (params, tokens [B, T], mask program, cached rows or None, taps) -> TargetOutput
    logits:  (params, hidden [..., D]) -> float32 scores [..., V]
    """

    forward: Callable[..., TargetOutput]
    logits: Callable[..., Any]


class Cache(NamedTuple):
    """Keys and values of committed tokens.

    init:  (config, batch, slots, dtype, stacked=) -> state
    read:  (state) -> what Target.forward takes as cached rows
    write: (state, rows, start [B]) -> state; row i of b goes to slot start[b] + i
    select: (rows, path [B, P]) -> rows of the path nodes only
    """

    init: Callable[..., Any]
    read: Callable[..., Any]
    write: Callable[..., Any]
    select: Callable[..., Any]


class Drafter(NamedTuple):
    """Who suggests tokens.

    init:    (params, request, canvas) -> state
    propose: (params, state, request, canvas) -> (Proposal, state)
    update:  (params, state, request, canvas, proposal, verdict, output) -> state; canvas is the
             committed one
    taps:    hidden states the target must return
    """

    init: Callable[..., Any]
    propose: Callable[..., Any]
    update: Callable[..., Any]
    taps: tuple[str, ...] = ()


class Verifier(NamedTuple):
    """Who checks, and with what law.

    verify: (request, canvas, proposal, logits [B, N, V]) -> Verdict
    """

    verify: Callable[..., Any]


class Method(NamedTuple):
    """One resolved registry line: a choice for each seat of the loop."""

    drafter: Drafter
    verifier: Verifier
    cache: Cache
