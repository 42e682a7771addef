"""The programs of a decoding run, compiled for devices that are not there.

They are the ones that run: `core.prefill.prefill` and `core.loop.run`, on shapes in place of
arrays, placed by `dist.rules` as `load` places the arrays.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdecode import checks, engine, resolve
from jaxdecode.core import attention as backends
from jaxdecode.core import loop, prefill
from jaxdecode.core.attention import Backend
from jaxdecode.core.protocols import Drafter, Method, Model, Models, Weights
from jaxdecode.core.types import Canvas, DecodeState, Proposal, Request, Stats
from jaxdecode.dist import rules
from jaxdecode.drafters import none
from jaxdecode.errors import InputError, UnsupportedError
from jaxdecode.models import decoder, heads
from jaxdecode.models.config import ModelConfig, param_shapes
from jaxdecode.options import Options, make_request
from jaxdecode.plan import hlo, traffic
from jaxdecode.trees import chain, static

# Depth of the tree that stands for any tree of its size: a step writes a path of so many rows + 1.
_DEPTH = 7


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


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiler made.

    Attributes:
        name: of the program.
        seconds: that tracing, lowering and compiling took.
        arguments: bytes per device of what it is given.
        temporaries: bytes per device that it needs beside arguments and results.
        aliased: bytes of results that take the place of arguments.
        peak: bytes per device that it needs in all.
        traffic: its account; None if the compiler's text cannot be read.
        module: the parsed text; None likewise.
    """

    name: str
    seconds: float
    arguments: int
    temporaries: int
    aliased: int
    peak: int
    traffic: traffic.Traffic | None
    module: hlo.Module | None


class OutOfMemory(Exception):
    """The compiler found that a program does not fit; the message is its own."""


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
    platform = mesh.devices.flat[0].platform
    made = Setup(
        config=heads.repeat_config(config, copies),
        mesh=mesh,
        batch=batch,
        context=context,
        dtype=jnp.dtype(dtype),
        kv_dtype=jnp.dtype(kv_dtype),
        stacked=layers == "stacked" or (layers == "auto" and platform == "tpu"),
        kv_copies=copies,
        backend=_backend(attention, config, mesh),
    )
    params(made)  # refuses what does not divide
    return made


def _backend(asked: str, config: ModelConfig, mesh: Mesh) -> Backend:
    if asked == "auto":
        # `choose` looks at this process's devices; ours are only in the mesh.
        own = mesh.devices.flat[0].platform
        asked = "xla" if backends.refuses(own, config) else own
    return backends.choose(asked, config, mesh)


def params(made: Setup) -> Any:
    """The parameters as shapes with their places."""
    return _params(made.config, made.mesh, made.dtype, made.stacked)


@functools.lru_cache(maxsize=64)
def _params(config: ModelConfig, mesh: Mesh, dtype: Any, stacked: bool) -> Any:
    shapes = param_shapes(config).items()
    tree = decoder.nest(config, {n: jax.ShapeDtypeStruct(shape, dtype) for n, shape in shapes})
    if stacked:
        tree["layers"] = jax.eval_shape(decoder.stack, tree["layers"])
    return _placed(tree, rules.params(tree, mesh))


def cache(made: Setup) -> Any:
    """The cache as shapes with their places."""
    model = _model(made)
    empty = functools.partial(
        model.cache.init,
        made.config,
        made.batch,
        made.slots,
        made.kv_dtype,
        stacked=made.stacked,
    )
    state = jax.eval_shape(empty)
    return _placed(state, rules.cache(state, made.mesh))


def shard_bytes(tree: Any) -> int:
    """Bytes per device of shapes with places."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def compile_prefill(made: Setup) -> Program:
    """The widest chunk of a prompt, after a first one: the program that needs most memory."""
    width = min(prefill.CHUNKS[-1], made.slots)
    model = _model(made)
    rows = {
        "tokens": jax.ShapeDtypeStruct((made.batch, width), jnp.int32),
        "num_new": jax.ShapeDtypeStruct((made.batch,), jnp.int32),
    }
    rows = _by_rows(rows, made)
    start = jax.ShapeDtypeStruct((), jnp.int32)
    cached = model.cache.read(cache(made))
    return compiled(
        f"prefill, {width} tokens",
        lambda: prefill.prefill.lower(
            params(made), rows["tokens"], start, rows["num_new"], cached, target=model.target
        ),
    )


def compile_step(made: Setup, num_nodes: int) -> Program:
    """The loop around proposals of so many nodes that cost nothing to find; 1 is decoding."""
    name = "decode" if num_nodes == 1 else f"verify, {num_nodes} nodes"
    _, plain = resolve.split("ar", {})
    method = resolve.method_of(plain, Models(_model(made)))._replace(drafter=_probe(num_nodes))
    return _compile_loop(made, name, method, Weights(target=params(made)))


def compile_method(made: Setup, name: str) -> Program:
    """The loop of a whole method: its drafter, the target and its verifier.

    Raises:
        UnknownNameError: no such method.
        UnsupportedError: it needs more than the target.
    """
    _, choice = resolve.split(name, {})
    check_method(name)
    method, weights = resolve.weights_of(choice, Models(_model(made)), params(made), None)
    return _compile_loop(made, f"step of {name}", method, weights)


def check_method(name: str) -> None:
    """Refuses methods whose program needs more than the target's shape."""
    entry = resolve.entry_of(name)
    more = (*entry.needs, *(["a policy"] if entry.policy else []))
    if more:
        raise UnsupportedError(
            f"method {name!r} needs {', '.join(more)}, which a shape does not say; plan --method "
            "ar shows what verifying any number of nodes costs."
        )


def num_nodes(made: Setup, name: str, options: Mapping[str, Any]) -> int:
    """Nodes of a method's widest proposal."""
    check_method(name)
    _, choice = resolve.split(name, options)
    drafter = resolve.method_of(choice, Models(_model(made))).drafter
    return max(drafter.widths, default=drafter.max_depth + 1)


def _compile_loop(made: Setup, name: str, method: Method, weights: Weights) -> Program:
    request, canvas = _request(made), _canvas(made)
    state = cache(made)
    view = method.cache.read(state)
    drafter = jax.eval_shape(
        lambda *given: method.drafter.init(*given, None), weights, request, canvas, view
    )
    counters = jax.ShapeDtypeStruct((made.batch,), jnp.int32)
    names = [field.name for field in dataclasses.fields(Stats)]
    rest = {
        "drafter": drafter,
        "stats": Stats(**dict.fromkeys(names, counters)),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    decoding = DecodeState(canvas=canvas, cache=state, **_by_rows(rest, made))
    steps = jax.ShapeDtypeStruct((), jnp.int32)
    target = _model(made).target
    return compiled(
        name,
        lambda: loop.run.lower(weights, request, decoding, steps, target=target, method=method),
    )


def compiled(name: str, lower: Callable[[], Any]) -> Program:
    """Compiles what `lower` makes, and measures it.

    Raises:
        OutOfMemory: the compiler found that it does not fit.
    """
    begin = time.perf_counter()
    try:
        made = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(" ".join(str(error).split())) from error
        raise
    seconds = time.perf_counter() - begin
    memory = made.memory_analysis()
    try:
        module = hlo.parse(made.as_text())
    except (jax.errors.JaxRuntimeError, ValueError):
        # jaxlib cannot print every program of the newest TPU.
        module = None
    arguments, aliased = memory.argument_size_in_bytes, memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes
    return Program(
        name=name,
        seconds=seconds,
        arguments=arguments,
        temporaries=temporaries,
        aliased=aliased,
        peak=arguments
        + memory.output_size_in_bytes
        - aliased
        + temporaries
        + memory.generated_code_size_in_bytes,
        traffic=None if module is None else traffic.account(module),
        module=module,
    )


def _model(made: Setup) -> Model:
    target = _target(made.config, made.kv_dtype, made.backend)
    return resolve.model_of(made.config, target, made.kv_dtype, made.mesh)


@functools.lru_cache(maxsize=8)
def _target(config: ModelConfig, kv_dtype: Any, backend: Backend) -> Any:
    return decoder.make_target(config, kv_dtype, backend)


@functools.lru_cache(maxsize=32)
def _probe(num_nodes: int) -> Drafter:
    """A drafter that fills a tree of so many nodes with the pending token."""
    if num_nodes == 1:
        return none.make(none.Config(), None)  # pyright: ignore[reportArgumentType]
    depth = min(num_nodes - 1, _DEPTH)
    deep = [(0,) * (i + 1) for i in range(depth)]
    wide = [(rank,) for rank in range(1, num_nodes - depth)]
    tree = static.from_paths([*deep, *wide])

    def propose(weights, state, request, canvas, view):
        del weights, request, view
        tokens = jnp.broadcast_to(chain.pending(canvas), (canvas.length.shape[0], num_nodes))
        valid = jnp.ones_like(tokens, bool)
        arrays = static.proposal_arrays(tree, tokens.shape[0])
        return Proposal(tokens=tokens, valid=valid, **arrays), state

    return none.stateless(propose, max_depth=depth)


def _request(made: Setup) -> Request:
    key = np.zeros(2, np.uint32)
    whole = make_request(
        Options(), [key], batch=made.batch, tokenizer=None, config=made.config, end_tokens=(0,)
    )
    return _by_rows(whole, made)


def _canvas(made: Setup) -> Canvas:
    def rows(dtype: Any, *more: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((made.batch, *more), dtype)

    number, slots = rows(jnp.int32), made.slots
    canvas = Canvas(
        tokens=rows(jnp.int32, slots),
        open=rows(jnp.bool_, slots),
        length=number,
        end=number,
        done=rows(jnp.bool_),
        finish=number,
        stop_state=number,
        commit_step=rows(jnp.int32, slots),
        logprob=rows(jnp.float32, slots),
    )
    return _by_rows(canvas, made)


def _by_rows(tree: Any, made: Setup) -> Any:
    return _placed(tree, rules.rows(tree, made.mesh, made.batch))


def _placed(tree: Any, shardings: Any) -> Any:
    def place(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree, shardings)
