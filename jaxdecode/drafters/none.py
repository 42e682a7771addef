"""The empty proposal: only the pending token. With it the loop is plain autoregressive decoding."""

import jax.numpy as jnp

from jaxdecode.core.protocols import Drafter
from jaxdecode.core.types import Proposal


def make() -> Drafter:
    """A drafter that suggests nothing: one node, one token per step."""
    return Drafter(init=_init, propose=_propose, update=_update)


def _init(params, request, canvas):
    del params, request, canvas
    return ()


def _propose(params, state, request, canvas):
    del params, request
    pending = jnp.take_along_axis(canvas.tokens, canvas.length[:, None], axis=1)
    zero = jnp.zeros_like(pending)
    valid = jnp.ones_like(pending, bool)
    return Proposal(tokens=pending, parent=zero - 1, depth=zero, valid=valid, max_depth=0), state


def _update(params, state, request, canvas, proposal, verdict, output):
    del params, request, canvas, proposal, verdict, output
    return state
