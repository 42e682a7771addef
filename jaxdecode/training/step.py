"""One step: gradients of the micro-batches added up, then one move of the optimizer.

What is trained is a flat dict of float32 arrays by name. Frozen leaves are no part of it: they have
no gradient, no state in the optimizer, and nothing that could write to them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxdecode.convert.heads import flattened, nested
from jaxdecode.core.types import pytree
from jaxdecode.dist import rules
from jaxdecode.training.config import Optimizer
from jaxdecode.training.objective import Batch, Moment, Objective, Start

Flat = dict[str, Any]


@pytree
class State:
    """What a step changes.

    Attributes:
        params: what is trained, by name; float32.
        optimizer: optax's state.
        step: steps taken.
    """

    params: Flat
    optimizer: Any
    step: Int[Array, ""]


class Parts(NamedTuple):
    """The leaves of `Start.params`: those that move, in float32, and those that stay."""

    moving: Flat
    held: Flat


def divide(start: Start) -> Parts:
    """Which leaves a run trains."""
    moving, held = {}, {}
    for name, leaf in flattened(start.params).items():
        if moves(start, name, leaf):
            # A copy in any case: the step donates it, and the target may use the same array.
            moving[name] = jnp.array(leaf, jnp.float32, copy=True)
        else:
            held[name] = leaf
    return Parts(moving, held)


def moves(start: Start, name: str, leaf: Any) -> bool:
    """Whether a leaf (or its shape) of `Start.params` is trained."""
    return jnp.issubdtype(leaf.dtype, jnp.floating) and not start.frozen(name)


def optimizer_of(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """Clipped AdamW under the schedule."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule_of(config, steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )


def schedule_of(config: Optimizer, steps: int) -> Callable[[Any], Any]:
    """Learning rate by step, from 0."""
    warmup = min(config.warmup_steps, steps - 1)
    cosine = optax.cosine_decay_schedule(config.lr, steps - warmup, config.final)
    if not warmup:
        return cosine
    # The first step moves too.
    rise = optax.linear_schedule(config.lr / (warmup + 1), config.lr, warmup)
    return optax.join_schedules([rise, cosine], [warmup])


def begin(parts: Parts, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step."""
    return State(
        params=parts.moving, optimizer=optimizer.init(parts.moving), step=jnp.zeros((), jnp.int32)
    )


def make(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    dtype: Any,
    num_steps: int,
    micro_batches: int = 1,
    mesh: Mesh | None = None,
) -> Callable[..., tuple[State, dict[str, Float[Array, ""]]]]:
    """The step: (state, held, target params, batch, base key) -> (state, metrics).

    Not jitted. The result does not depend on how a run was interrupted: noise is a function of the
    base key, the step and the micro-batch.

    Args:
        objective: what is minimised.
        optimizer: how parameters move.
        dtype: of the computation.
        num_steps: of the whole run.
        micro_batches: parts of the rows that are computed one after the other.
        mesh: devices that parameters are split over.
    """

    def lowered(moving: Flat) -> Flat:
        low = {name: leaf.astype(dtype) for name, leaf in moving.items()}
        if mesh is None:
            return low
        # Gathered in the dtype of the computation, not in float32.
        return jax.lax.with_sharding_constraint(low, rules.trained(low, mesh))

    def loss(moving, held, target, moment, batch, key):
        low = lowered(moving)
        value, metrics = objective.loss(nested(low | held), target, batch, key, moment)
        return value, metrics | {"loss": value}

    gradients = jax.grad(loss, has_aux=True)

    def step(state: State, held, target, batch: Batch, key):
        key = jax.random.fold_in(key, state.step)
        moment = Moment(state.step, num_steps)
        if micro_batches == 1:
            grads, metrics = gradients(state.params, held, target, moment, batch, key)
        else:
            one = functools.partial(gradients, state.params, held, target, moment)
            grads, metrics = _accumulated(one, batch, key, micro_batches)
        updates, moved = optimizer.update(grads, state.optimizer, state.params)
        metrics |= {"gradient": optax.tree.norm(grads), "tokens": batch.weight.sum()}
        params: Any = optax.apply_updates(state.params, updates)
        return State(params=params, optimizer=moved, step=state.step + 1), metrics

    return step


def _accumulated(
    gradients: Callable[[Batch, Array], tuple[Flat, dict]], batch: Batch, key: Array, parts: int
) -> tuple[Flat, dict]:
    """Means of gradients and metrics over parts of the rows, by the tokens that count in each."""

    def split(leaf: Array) -> Array:
        # Neighbouring rows lie on one device, so a part takes every parts-th row of all.
        return jnp.swapaxes(leaf.reshape(-1, parts, *leaf.shape[1:]), 0, 1)

    pieces = jax.tree.map(split, batch)
    counts = pieces.weight.sum((1, 2))
    shares = counts / jnp.maximum(counts.sum(), 1e-9)

    def add(total, part):
        piece, share, number = part
        found = gradients(piece, jax.random.fold_in(key, number))
        return jax.tree.map(lambda a, b: a + share * b, total, found), None

    first = jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], pieces), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), first)
    (grads, metrics), _ = jax.lax.scan(add, zeros, (pieces, shares, jnp.arange(parts)))
    return grads, metrics
