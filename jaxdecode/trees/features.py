"""The target's last hidden state as a drafter's state: that of the token before the pending one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode.core.protocols import Model
from jaxdecode.core.types import Verdict


def start(model: Model) -> Callable[..., Any]:
    """A drafter's `init`; a row whose prompt is a single token keeps the zeros for one step."""

    def init(weights, request, canvas, view, memory):
        del request, view, memory
        dtype = weights.target["embed"]["embedding"].dtype
        return jnp.zeros((canvas.length.shape[0], model.config.hidden_size), dtype)

    return init


def absorb(weights, state, canvas, start, num_new, output):
    """A drafter's `absorb`: the state of each row's last token in this chunk, if it has one."""
    del weights, canvas, start
    last = jnp.maximum(num_new - 1, 0)
    return jnp.where((num_new > 0)[:, None], pick(output.hidden, last), state)


def update(weights, state, request, canvas, proposal, verdict, output):
    """A drafter's `update`: the state of the last accepted node."""
    del weights, state, request, canvas, proposal
    return pick(output.hidden, last_node(verdict))


def last_node(verdict: Verdict) -> Int[Array, "B"]:
    """The last accepted node of every row: its successor is the next pending token."""
    return jnp.take_along_axis(verdict.path, verdict.num_accepted[:, None], axis=1)[:, 0]


def pick(rows: Float[Array, "B N *D"], index: Int[Array, "B"]) -> Float[Array, "B *D"]:
    """`rows[b, index[b]]` of every row b."""
    return jax.vmap(lambda row, i: row[i])(rows, index)
