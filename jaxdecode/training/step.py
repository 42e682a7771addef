"""One step: gradients of the micro-batches added up, then a move of the optimizer.

Where the model is trained on what it writes itself, a step begins with that, and may move more than
once for it.

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


def optimizer_of(config: Optimizer, steps: int, num_moves: int = 1) -> optax.GradientTransformation:
    """Clipped AdamW under the schedule; all moves of a step have the same learning rate."""
    schedule = schedule_of(config, steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule if num_moves == 1 else lambda count: schedule(jnp.asarray(count) // num_moves),
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
        # Gathered in the dtype of the computation, not in float32, and here: left to XLA, it splits
        # products over "data" or gathers a kernel at every use.
        low = jax.lax.with_sharding_constraint(low, rules.trained(low, mesh))
        return jax.lax.with_sharding_constraint(low, rules.trained(low, mesh, gathered=True))

    def loss(moving, held, target, moment, batch, key):
        low = lowered(moving)
        value, metrics = objective.loss(nested(low | held), target, batch, key, moment)
        return value, metrics | {"loss": value}

    gradients = jax.grad(loss, has_aux=True)

    def rolled(params: Flat, held, target, moment, batch: Batch, key) -> Batch:
        if objective.rollout is None:
            return batch
        one = functools.partial(objective.rollout, nested(lowered(params) | held), target)
        # A key that no move has.
        key = jax.random.fold_in(key, objective.num_moves)
        return _by_parts(lambda *given: one(*given, moment), batch, key, micro_batches)

    def move(before: tuple[Flat, Any], held, target, moment, batch: Batch, key):
        params, optimized = before
        one = functools.partial(gradients, params, held, target, moment)
        grads, metrics = _accumulated(one, batch, key, micro_batches)
        updates, optimized = optimizer.update(grads, optimized, params)
        moved: Any = optax.apply_updates(params, updates)
        return (moved, optimized), metrics | {"gradient": optax.tree.norm(grads)}

    def step(state: State, held, target, batch: Batch, key):
        key = jax.random.fold_in(key, state.step)
        moment, tokens = Moment(state.step, num_steps), batch.weight.sum()
        batch = rolled(state.params, held, target, moment, batch, key)

        def again(carry, key):
            return move(carry, held, target, moment, batch, key)

        first = state.params, state.optimizer
        (params, optimized), metrics = _repeated(again, first, key, objective.num_moves)
        after = State(params=params, optimizer=optimized, step=state.step + 1)
        return after, metrics | {"tokens": tokens}

    return step


def _repeated(
    move: Callable[[Any, Array], tuple[Any, dict]], first: Any, key: Array, num_moves: int
):
    """`num_moves` moves one after the other, and the means of their metrics."""
    if num_moves == 1:
        return move(first, key)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_moves))
    last, every = jax.lax.scan(move, first, keys)
    return last, jax.tree.map(lambda values: values.mean(0), every)


def _split(batch: Batch, parts: int) -> Batch:
    """The rows in parts, on an axis before theirs."""

    def split(leaf: Array) -> Array:
        # Neighbouring rows lie on one device, so a part takes every parts-th row of all.
        return jnp.swapaxes(leaf.reshape(-1, parts, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(split, batch)


def _by_parts(make: Callable[[Batch, Array], Batch], batch: Batch, key: Array, parts: int) -> Batch:
    """What `make` makes of a batch, part by part, in rows that split into the same parts again."""
    if parts == 1:
        return make(batch, key)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(parts))
    pieces = jax.lax.map(lambda given: make(*given), (_split(batch, parts), keys))

    def join(leaf: Array) -> Array:
        return jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])

    return jax.tree.map(join, pieces)


def _accumulated(
    gradients: Callable[[Batch, Array], tuple[Flat, dict]], batch: Batch, key: Array, parts: int
) -> tuple[Flat, dict]:
    """Means of gradients and metrics over parts of the rows, by the tokens that count in each."""
    if parts == 1:
        return gradients(batch, key)
    pieces = _split(batch, parts)
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
