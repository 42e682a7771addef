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

from jaxdecode import resolve, zoo
from jaxdecode.core import loop, prefill
from jaxdecode.core.protocols import Drafter, Method, Models, Weights
from jaxdecode.core.types import Canvas, DecodeState, Proposal, Request, Stats
from jaxdecode.drafters import none
from jaxdecode.errors import UnsupportedError
from jaxdecode.options import Options, make_request
from jaxdecode.plan import hlo, traffic
from jaxdecode.plan.setup import Setup, by_rows, cache, model, params
from jaxdecode.trees import chain, static

# Depth of the tree that stands for any tree of its size: a step writes a path of so many rows + 1.
_DEPTH = 7


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


def compile_prefill(made: Setup) -> Program:
    """The widest chunk of a prompt, after a first one: the program that needs most memory.

    Its traffic is that of the second chunk, which takes in one block of the cache per layer.
    """
    width = min(prefill.CHUNKS[-1], made.slots)
    own = model(made)
    rows = {
        "tokens": jax.ShapeDtypeStruct((made.batch, width), jnp.int32),
        "num_new": jax.ShapeDtypeStruct((made.batch,), jnp.int32),
    }
    rows = by_rows(rows, made)
    start = jax.ShapeDtypeStruct((), jnp.int32)
    cached = own.cache.read(cache(made))
    program = compiled(
        f"prefill, {width} tokens",
        lambda: prefill.prefill.lower(
            params(made), rows["tokens"], start, rows["num_new"], cached, target=own.target
        ),
    )
    if program.traffic is None:
        return program
    whole = dataclasses.replace(program.traffic, unknown_loops=())
    return dataclasses.replace(program, traffic=whole)


def compile_step(made: Setup, num_nodes: int) -> Program:
    """The loop around proposals of so many nodes that cost nothing to find; 1 is decoding."""
    name = "decode" if num_nodes == 1 else f"verify, {num_nodes} nodes"
    _, plain = resolve.split("ar", {})
    method = resolve.method_of(plain, Models(model(made)))._replace(drafter=_probe(num_nodes))
    return _compile_loop(made, name, method, Weights(target=params(made)))


def compile_method(made: Setup, name: str, options: Mapping[str, Any]) -> Program:
    """The loop of a whole method: its drafter, the target and its verifier.

    Raises:
        UnknownNameError: no such method.
        UnsupportedError: it needs more than the target.
    """
    _, choice = resolve.split(name, options)
    check_method(name)
    resolve.check_model(name, made.config)
    method = resolve.method_of(choice, Models(model(made)))
    return _compile_loop(made, f"step of {name}", method, abstract_weights(made, method))


def abstract_weights(made: Setup, method: Method) -> Weights:
    """Shapes of all parameters of a method that needs no other model, as its drafter reads them."""
    weights, prepare = Weights(target=params(made)), method.drafter.prepare
    if prepare is None:
        return weights
    return weights._replace(drafter=jax.eval_shape(prepare, weights).drafter)


def compile_pass(made: Setup, method: Method, width: int) -> Program:
    """The loop of a method that fills slots, as if every step took in so many rows."""
    propose = method.drafter.propose

    def narrow(*given):
        window, state = propose(*given)
        return loop.narrow(window, width), state

    drafter = method.drafter._replace(propose=narrow, widths=())
    return _compile_loop(
        made, f"{width} rows", method._replace(drafter=drafter), abstract_weights(made, method)
    )


def num_scored(made: Setup, method: Method) -> int:
    """Slots whose scores a step of a method that fills slots computes."""
    weights = abstract_weights(made, method)
    request, state = _decoding(made, method, weights)
    view = method.cache.read(state.cache)
    propose = method.drafter.propose
    window, _ = jax.eval_shape(propose, weights, state.drafter, request, state.canvas, view)
    return window.scored.shape[1]


def filling(made: Setup, name: str, options: Mapping[str, Any]) -> Method:
    """The bundles of a method that fills slots.

    Raises:
        UnknownNameError: no such method.
        UnsupportedError: it needs more than the target.
        InputError: the model cannot fill slots with these options.
    """
    check_method(name)
    _, choice = resolve.split(name, options)
    return resolve.method_of(choice, Models(model(made)))


def check_method(name: str) -> None:
    """Refuses methods whose program needs more than the target's shape."""
    entry = resolve.entry_of(name)
    more = (*zoo.beside(name), *([] if entry.on_loop else ["a loop of its own"]))
    if more:
        raise UnsupportedError(
            f"method {name!r} needs {', '.join(more)}, which a shape does not say; plan --method "
            "ar shows what verifying any number of nodes costs."
        )


def num_nodes(made: Setup, name: str, options: Mapping[str, Any]) -> int:
    """Nodes of a method's widest proposal."""
    check_method(name)
    _, choice = resolve.split(name, options)
    drafter = resolve.method_of(choice, Models(model(made))).drafter
    return max(drafter.widths, default=drafter.max_depth + 1)


def _compile_loop(made: Setup, name: str, method: Method, weights: Weights) -> Program:
    request, decoding = _decoding(made, method, weights)
    steps = jax.ShapeDtypeStruct((), jnp.int32)
    target = model(made).target
    return compiled(
        name,
        lambda: loop.run.lower(weights, request, decoding, steps, target=target, method=method),
    )


def _decoding(made: Setup, method: Method, weights: Weights) -> tuple[Request, DecodeState]:
    """What the loop is given, as shapes with their places."""
    request, canvas = _request(made), _canvas(made)
    state = cache(made, method.cache)
    view = method.cache.read(state)
    drafter = jax.eval_shape(
        lambda *given: method.drafter.init(*given, None), weights, request, canvas, view
    )
    counters: Any = jax.ShapeDtypeStruct((made.batch,), jnp.int32)
    names = [field.name for field in dataclasses.fields(Stats)]
    rest = {
        "drafter": drafter,
        "stats": Stats(**{name: counters for name in names}),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    return request, DecodeState(canvas=canvas, cache=state, **by_rows(rest, made))


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
    return by_rows(whole, made)


def _canvas(made: Setup) -> Canvas:
    def rows(dtype: Any, *more: int) -> Any:
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
    return by_rows(canvas, made)
