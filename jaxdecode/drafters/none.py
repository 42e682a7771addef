"""The empty proposal: only the pending token. With it the loop is plain autoregressive decoding."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import Proposal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """No options."""


def make(config: Config, models: Models) -> Drafter:
    """A drafter that suggests nothing: one node, one token per step."""
    del config, models
    return stateless(_propose)


def stateless(
    propose: Callable[..., Any], *, widths: tuple[int, ...] = (), max_depth: int = 0
) -> Drafter:
    """A drafter that learns nothing from a step: what `propose` returns as state stays."""
    return Drafter(init=_init, propose=propose, update=_update, widths=widths, max_depth=max_depth)


def _init(weights, request, canvas, view, memory):
    del weights, request, canvas, view, memory
    return ()


def _propose(weights, state, request, canvas, view):
    del weights, request, view
    pending = jnp.take_along_axis(canvas.tokens, canvas.length[:, None], axis=1)
    zero = jnp.zeros_like(pending)
    valid = jnp.ones_like(pending, bool)
    return Proposal(tokens=pending, parent=zero - 1, depth=zero, valid=valid, max_depth=0), state


def _update(weights, state, request, canvas, proposal, verdict, output):
    del weights, request, canvas, proposal, verdict, output
    return state
