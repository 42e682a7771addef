"""The past of a drafter that has layers of its own: its cache, and the rows it guesses from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode.core import prefill
from jaxdecode.core.protocols import Model, Rows
from jaxdecode.core.types import pytree
from jaxdecode.models.config import ModelConfig
from jaxdecode.trees import probes


@pytree
class Past:
    """Rows of the committed tokens.

    Attributes:
        cache: their keys and values.
        last: the last w of them as they enter the layer; zeros where there are fewer.
        num_rows: how many there are.
    """

    cache: Any
    last: Float[Array, "B w D"]
    num_rows: Int[Array, "B"]


def empty(model: Model, config: ModelConfig, batch: int, slots: int) -> Any:
    """An empty cache for layers as `config` says, one array per layer, beside the target's."""
    return prefill.empty({"layers": ()}, model._replace(config=config), batch, slots)


def positions(past: Past, num_new: int) -> Int[Array, "B C"]:
    """Positions of the next rows."""
    return past.num_rows[:, None] + jnp.arange(num_new, dtype=jnp.int32)


def append(
    model: Model, past: Past, x: Float[Array, "B C D"], rows: Rows, num_new: Int[Array, "B"]
) -> Past:
    """The past with more rows behind it; what is written past them is never seen.

    Args:
        model: the target: says where caches are kept.
        past: the rows so far.
        x: the new rows as they enter the layer.
        rows: their keys and values.
        num_new: how many of them a row of the batch has.
    """
    width = past.last.shape[1]

    def end(last, x, num):
        joined = jnp.concatenate([last, x.astype(last.dtype)])
        return jax.lax.dynamic_slice_in_dim(joined, num, width)

    return Past(
        cache=model.cache.write(past.cache, rows, past.num_rows),
        last=jax.vmap(end)(past.last, x, num_new),
        num_rows=past.num_rows + num_new,
    )


def of_states(model: Model, config: ModelConfig, rows: Callable[..., Rows]) -> dict[str, Any]:
    """`init`, `absorb` and `update` of a drafter whose layer attends to the target's last states.

    Args:
        model: the target.
        config: of the layer.
        rows: (heads, states, positions) -> keys and values of a cache of one layer.
    """

    def init(weights, request, canvas, view, memory):
        del request, view, memory
        batch, slots = canvas.tokens.shape
        dtype = weights.target["embed"]["embedding"].dtype
        return Past(
            cache=empty(model, config, batch, slots),
            last=jnp.zeros((batch, 1, model.config.hidden_size), dtype),
            num_rows=jnp.zeros(batch, jnp.int32),
        )

    def extend(weights, past, hidden, num_new):
        new = rows(weights.heads, hidden, positions(past, hidden.shape[1]))
        return append(model, past, hidden, new, num_new)

    def absorb(weights, state, canvas, start, num_new, output):
        del canvas, start
        return extend(weights, state, output.hidden, num_new)

    def update(weights, state, request, canvas, proposal, verdict, output):
        del request, proposal
        hidden = probes.at(output.hidden, verdict.path)
        # All committed tokens but the pending one have a row.
        return extend(weights, state, hidden, canvas.length - state.num_rows)

    return {"init": init, "absorb": absorb, "update": update}
