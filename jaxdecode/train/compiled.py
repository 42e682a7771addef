"""The step of a run for machines that are not here: compiled from shapes, as `plan` does."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdecode.convert import heads as head_files
from jaxdecode.core import attention
from jaxdecode.core.protocols import HeadSpec, Models, Weights
from jaxdecode.dist import rules
from jaxdecode.models import decoder
from jaxdecode.plan import programs
from jaxdecode.plan import setup as plans
from jaxdecode.train import setup, step
from jaxdecode.train.config import Optimizer
from jaxdecode.train.objective import Batch
from jaxdecode.train.recipes import RECIPES


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
    """
    line = RECIPES[recipe]
    assert line.heads is not None
    spec = HeadSpec(line.heads, head_files.shape_of(line.heads, shape or {}))
    target = decoder.make_target(made.config, made.kv_dtype, attention.XLA)
    models = Models(plans.model(made)._replace(target=target), None, spec)
    config = setup.objective_config(line, settings or {})
    objective = setup.make_objective(line, config, models)
    params, key = plans.params(made), jax.eval_shape(lambda: jax.random.key(0))
    fresh = jax.eval_shape(lambda key, p: objective.init(key, Weights(p)).params, key, params)
    moving, held = {}, {}
    for name, leaf in head_files.flattened(fresh).items():
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        dtype = jnp.float32 if is_float else leaf.dtype
        (moving if is_float else held)[name] = jax.ShapeDtypeStruct(leaf.shape, dtype)
    optimizer = step.optimizer_of(Optimizer(), 1000)
    state = jax.eval_shape(lambda moving: step.begin(step.Parts(moving, {}), optimizer), moving)
    where = rules.trained(state, made.mesh)
    run = step.make(
        objective, optimizer, dtype=made.dtype, micro_batches=micro_batches, mesh=made.mesh
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
