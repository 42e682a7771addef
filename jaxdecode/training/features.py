"""Training on the target's states: what a drafter of states is compared with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode.core import ops
from jaxdecode.core.protocols import Target
from jaxdecode.training import losses
from jaxdecode.training.objective import Batch, program


def known(batch: Batch, features: Callable[..., Any], params: Any) -> Any:
    """The features of a batch: those it brings along, else computed."""
    return features(params, batch) if batch.features is None else batch.features


def states(target: Target) -> Callable[..., Any]:
    """The `features` of objectives that read the last hidden states of a frozen target."""

    def features(target_params: Any, batch: Batch) -> Float[Array, "B T D"]:
        frozen = jax.lax.stop_gradient(target_params)
        return target.forward(frozen, batch.tokens, program(batch), None).hidden

    return features


def shift(rows: Float[Array, "B T *D"], offset: int) -> Float[Array, "B T *D"]:
    """The row `offset` places after each; zeros past the end."""
    pad = [(0, 0), (0, offset), *[(0, 0)] * (rows.ndim - 2)]
    return jnp.pad(rows[:, offset:], pad)


def ahead_of(
    rows: Float[Array, "B T *D"], places: Int[Array, "B P"], offset: int
) -> Float[Array, "B P *D"]:
    """What `shift` has at these places."""
    there = places + offset < rows.shape[1]
    found = ops.taken(rows, jnp.where(there, places + offset, 0))
    return jnp.where(there.reshape(*there.shape, *[1] * (rows.ndim - 2)), found, 0)


def disturbed(key: Array, rows: Float[Array, "B T D"], width: float) -> Float[Array, "B T D"]:
    """The rows with uniform noise of this half-width."""
    if width == 0:
        return rows
    noise = jax.random.uniform(key, rows.shape, jnp.float32, -width, width)
    return (rows + noise).astype(rows.dtype)


def compared(
    target: Target,
    params: Any,
    states: Float[Array, "B T D"],
    wanted: Float[Array, "B T D"],
    key: Array,
    *,
    temperature: float = 1.0,
) -> tuple[Float[Array, "B T"], dict[str, Float[Array, "B T"]]]:
    """Distance of states from the target's own, and of what its head says of both.

    Args:
        target: its functions.
        params: its parameters.
        states: guessed states.
        wanted: the target's own.
        key: PRNG key of the drawn tokens.
        temperature: of both laws in `soft`.

    Returns:
        The smooth L1 distance, and of the laws: `soft`, the mean under the target's law p of
        log p_T / q_T, both at that temperature; `hard`, the cross-entropy of a token drawn from p;
        `hit`, whether both have the same first choice.
    """
    keys = jax.random.key_data(jax.random.split(key, states.shape[:2]))

    def laws(states, wanted, keys):
        ours, theirs = (target.logits(params, x) for x in (states, wanted))
        logs = [jax.nn.log_softmax(x / temperature) for x in (theirs, ours)]
        soft = (jax.nn.softmax(theirs) * (logs[0] - logs[1])).sum(-1)
        drawn = jax.vmap(jax.random.categorical)(jax.random.wrap_key_data(keys), theirs)
        hit = ours.argmax(-1) == theirs.argmax(-1)
        return {"soft": soft, "hard": losses.cross_entropy(ours, drawn), "hit": hit}

    return losses.smooth_l1(states, wanted), losses.over_tokens(laws, states, wanted, keys)
