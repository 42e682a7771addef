"""A model on a mesh as shapes with places: parameters, cache, and what belongs to rows."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdecode import checks, engine, resolve
from jaxdecode.core import attention as backends
from jaxdecode.core.attention import Backend
from jaxdecode.core.protocols import Cache, Model
from jaxdecode.dist import rules
from jaxdecode.errors import InputError
from jaxdecode.models import decoder, kv_heads
from jaxdecode.models.config import ModelConfig, param_shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """A model on a mesh, and the arrays of one batch.

    Attributes:
        config: the model as it lies there: KV heads repeated where they do not divide.
        mesh: the devices.
        batch: rows.
        context: tokens a row can hold, prompt and answer.
        dtype: of parameters and activations.
        kv_dtype: of keys and values.
        stacked: whether layers are one scanned tree.
        kv_copies: how often each KV head of the checkpoint is repeated.
        backend: who computes attention.
    """

    config: ModelConfig
    mesh: Mesh
    batch: int
    context: int
    dtype: Any
    kv_dtype: Any
    stacked: bool
    kv_copies: int
    backend: Backend

    @property
    def slots(self) -> int:
        """Slots of the canvas and of the cache: the bucket that holds a row and a step's excess."""
        return slots_for(self.context)


def slots_for(context: int) -> int:
    """Slots of a canvas whose rows hold up to `context` tokens."""
    return engine.slot_bucket(context + engine.SLACK)


def setup(
    config: ModelConfig,
    mesh: Mesh,
    *,
    batch: int,
    context: int,
    dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
    attention: str = "auto",
    layers: str = "auto",
) -> Setup:
    """Checks that the model and the batch can be split over the mesh.

    Args:
        config: the model.
        mesh: the devices.
        batch: rows.
        context: tokens a row can hold, prompt and answer.
        dtype: of parameters and activations.
        kv_dtype: of keys and values.
        attention: as `load` takes it; "auto" is the kernel of the mesh's devices if it can serve
            the model, else XLA.
        layers: "list", "stacked" or "auto", what `load` takes: stacked on TPU, else a list.

    Raises:
        InputError: heads, MLP width or rows do not divide; the context is too long.
        UnsupportedError: the kernel asked for cannot serve the model.
    """
    checks.integer("batch", batch, low=1)
    checks.integer("context", context, low=2)
    if context > config.max_length:
        raise InputError(
            f"context {context} is longer than the model's {config.max_length} tokens; "
            f"use at most {config.max_length}."
        )
    data = mesh.shape[rules.RULES["rows"]]
    if batch % data:
        raise InputError(
            f"batch {batch} does not divide by data={data}; use a multiple of {data}, or a mesh "
            "with a smaller data axis."
        )
    size = mesh.shape[rules.RULES["kv_heads"]]
    copies = rules.kv_copies(config.num_kv_heads, config.group_size, size)
    placed = kv_heads.repeat_config(config, copies)
    platform = mesh.devices.flat[0].platform
    made = Setup(
        config=placed,
        mesh=mesh,
        batch=batch,
        context=context,
        dtype=jnp.dtype(dtype),
        kv_dtype=jnp.dtype(kv_dtype),
        stacked=layers == "stacked" or (layers == "auto" and platform == "tpu"),
        kv_copies=copies,
        backend=backends.choose(attention, placed, jnp.dtype(kv_dtype), mesh),
    )
    params(made)  # refuses what does not divide
    return made


def params(made: Setup) -> Any:
    """The parameters as shapes with their places."""
    return _params(made.config, made.mesh, made.dtype, made.stacked)


@functools.lru_cache(maxsize=64)
def _params(config: ModelConfig, mesh: Mesh, dtype: Any, stacked: bool) -> Any:
    shapes = param_shapes(config).items()
    tree = decoder.nest(config, {n: jax.ShapeDtypeStruct(shape, dtype) for n, shape in shapes})
    if stacked:
        tree["layers"] = jax.eval_shape(decoder.stack, tree["layers"])
    return placed(tree, rules.params(tree, mesh))


def cache(made: Setup, kept: Cache | None = None) -> Any:
    """The cache as shapes with their places: the model's own, or another that a method keeps."""
    kept = model(made).cache if kept is None else kept
    empty = functools.partial(
        kept.init,
        made.config,
        made.batch,
        made.slots,
        made.kv_dtype,
        stacked=made.stacked,
    )
    state = jax.eval_shape(empty)
    return placed(state, rules.cache(state, made.mesh))


def shard_bytes(tree: Any) -> int:
    """Bytes per device of shapes with places."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def model(made: Setup) -> Model:
    """The model's functions, as `load` binds them."""
    target = _target(made.config, made.kv_dtype, made.backend)
    return resolve.model_of(made.config, target, made.kv_dtype, made.mesh)


@functools.lru_cache(maxsize=8)
def _target(config: ModelConfig, kv_dtype: Any, backend: Backend) -> Any:
    return decoder.make_target(config, kv_dtype, backend)


def by_rows(tree: Any, made: Setup) -> Any:
    """Shapes with the places of a canvas, a request or a drafter's state."""
    return placed(tree, rules.rows(tree, made.mesh, made.batch))


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes with these places."""

    def place(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree, shardings)
