"""The step of a run for machines that are not here: compiled from shapes, as `plan` does."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdecode.convert import heads as head_files
from jaxdecode.core import attention
from jaxdecode.core.protocols import HeadSpec, Models, Weights
from jaxdecode.dist import rules
from jaxdecode.errors import InputError
from jaxdecode.models import decoder
from jaxdecode.plan import programs
from jaxdecode.plan import setup as plans
from jaxdecode.training import setup, step
from jaxdecode.training.config import Optimizer
from jaxdecode.training.objective import Batch, Objective, Start
from jaxdecode.training.recipes import RECIPES


def compile_step(
    made: plans.Setup,
    recipe: str,
    *,
    length: int,
    shape: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    micro_batches: int = 1,
) -> programs.Program:
    """A step that trains heads for a frozen target.

    Args:
        made: target, mesh and rows of a step.
        recipe: what is trained; it must train heads.
        length: tokens of a row.
        shape: sizes of the heads that differ from their defaults.
        settings: of the objective.
        micro_batches: parts of a step.

    Raises:
        OutOfMemory: it does not fit.
        InputError: the recipe trains no heads.
    """
    line = RECIPES[recipe]
    if line.heads is None:
        raise InputError(f"recipe {recipe!r} trains no heads; only steps of heads are compiled.")
    spec = HeadSpec(line.heads, head_files.shape_of(line.heads, shape or {}))
    backend = attention.for_training(made.config, made.mesh)
    target = decoder.make_target(made.config, made.kv_dtype, backend)
    models = Models(plans.model(made)._replace(target=target), None, spec)
    config = setup.objective_config(line, settings or {})
    objective = setup.make_objective(line, config, models)
    params, key = plans.params(made), jax.eval_shape(lambda: jax.random.key(0))
    start = _first(objective, key, params)
    moving, held = {}, {}
    for name, leaf in head_files.flattened(start.params).items():
        if step.moves(start, name, leaf):
            moving[name] = jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
        else:
            held[name] = leaf
    num_steps = 1000
    optimizer = step.optimizer_of(Optimizer(), num_steps)
    state = jax.eval_shape(lambda moving: step.begin(step.Parts(moving, {}), optimizer), moving)
    where = rules.trained(state, made.mesh)
    run = step.make(
        objective,
        optimizer,
        dtype=made.dtype,
        num_steps=num_steps,
        micro_batches=micro_batches,
        mesh=made.mesh,
    )
    rows: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(
            (made.batch, length),
            jnp.float32 if name == "weight" else jnp.int32,
            sharding=rules.batch(made.mesh),
        )
        for name in ("tokens", "positions", "segments", "weight")
    }
    jitted = jax.jit(run, donate_argnums=0, out_shardings=(where, None))
    placed = plans.placed(state, where)
    batch = Batch(**rows)
    return programs.compiled(
        f"step of {recipe}", lambda: jitted.lower(placed, held, params, batch, key)
    )


def _first(objective: Objective, key: Any, params: Any) -> Start:
    """What training begins with, as shapes."""
    found = []

    def begin(key, params):
        found.append(objective.init(key, Weights(params), None))
        return found[0].params

    shapes = jax.eval_shape(begin, key, params)
    return found[0]._replace(params=shapes)
