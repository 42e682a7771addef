"""Prefill: keys and values of a batch of prompts, chunk by chunk, for a target or a draft model."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxdecode.core import masks
from jaxdecode.core.protocols import Cache, Drafter, Model, Rows, Target, TargetOutput, Weights
from jaxdecode.core.types import Canvas, Request
from jaxdecode.dist import place, rules

# Widths of a chunk: padding costs at most a third, and a sixth of a long prompt.
CHUNKS = (16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512)


def chunks(num_tokens: int) -> Iterator[tuple[int, int]]:
    """Start and width of each chunk that covers `num_tokens` tokens."""
    start = 0
    while start < num_tokens:
        left = num_tokens - start
        width = next((c for c in CHUNKS if c >= left), CHUNKS[-1])
        yield start, width
        start += width


def empty(params: Any, model: Model, batch: int, slots: int) -> Any:
    """An empty cache in the form that the parameters ask for, made where it will lie."""
    stacked = not isinstance(params["layers"], Sequence)
    init = functools.partial(_zeros, model._replace(mesh=None), batch, slots, stacked)
    if model.mesh is None:
        return init()
    shardings = rules.cache(jax.eval_shape(init), model.mesh)
    return jax.jit(init, out_shardings=shardings)()


# One program: an array per layer, made one by one, takes longer than a step of a small model.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _zeros(model: Model, batch: int, slots: int, stacked: bool) -> Any:
    return model.cache.init(model.config, batch, slots, model.kv_dtype, stacked=stacked)


# Sees each chunk: its first slot, the rows' tokens in it [B], and what the target computed.
Look = Callable[[np.int32, Any, Any], None]


def fill(
    params: Any,
    model: Model,
    cache: Any,
    tokens: np.ndarray,
    lengths: np.ndarray,
    *,
    taps: tuple[str, ...] | None = None,
    look: Look | None = None,
) -> Any:
    """The cache with the first lengths[b] tokens of every row b in it.

    Args:
        params: the model's parameters.
        model: the model.
        cache: an empty cache of that model; donated.
        tokens: slots of the canvas, `[B, L]`, on the host: slicing there compiles nothing.
        lengths: tokens of each row, `[B]`, on the host.
        taps: hidden states that `look` wants besides the final ones.
        look: called with every chunk.
    """
    for start, width in chunks(int(lengths.max())):
        chunk = tokens[:, start : start + width], np.clip(lengths - start, 0, width)
        chunk = place.rows(chunk, model.mesh, len(lengths))
        cached = model.cache.read(cache) if start else None
        first = np.int32(start)
        rows, seen = prefill(
            params, chunk[0], first, chunk[1], cached, target=model.target, taps=taps
        )
        cache = store(cache, rows, first, cache=model.cache)
        if look is not None:
            look(first, chunk[1], seen)
    return cache


def start(
    weights: Weights,
    model: Model,
    drafter: Drafter,
    request: Request,
    canvas: Canvas,
    memory: Any = None,
) -> tuple[Any, Any]:
    """The target's cache with the prompts in it, and the drafter's first state.

    Args:
        weights: parameters of all parts.
        model: the target.
        drafter: who will draft.
        request: arrays of the batch's options.
        canvas: before the first step, on the host.
        memory: what the drafter remembers of earlier batches.
    """
    tokens, lengths = np.asarray(canvas.tokens), np.asarray(canvas.length)
    batch, slots = tokens.shape
    cache = empty(weights.target, model, batch, slots)
    canvas = jax.device_put(canvas)

    def begin():
        return drafter.init(weights, request, canvas, model.cache.read(cache), memory)

    if not drafter.prefilled:
        return cache, begin()
    if drafter.absorb is None:
        cache = fill(weights.target, model, cache, tokens, lengths)
        return cache, begin()
    state = place.rows(begin(), model.mesh, batch)
    canvas = place.rows(canvas, model.mesh, batch)

    def look(first, num_new, seen):
        nonlocal state
        state = _absorb(weights, state, canvas, first, num_new, seen, absorb=drafter.absorb)

    taps = drafter.taps
    return fill(weights.target, model, cache, tokens, lengths, taps=taps, look=look), state


@functools.partial(jax.jit, static_argnames="absorb", donate_argnames="state")
def _absorb(weights, state, canvas, start, num_new, output, *, absorb):
    return absorb(weights, state, canvas, start, num_new, output)


@functools.partial(jax.jit, static_argnames=("target", "taps"))
def prefill(
    params: Any,
    tokens: Int[Array, "B C"],
    start: Int[Array, ""],
    num_new: Int[Array, "B"],
    cached: Rows | None,
    *,
    target: Target,
    taps: tuple[str, ...] | None = None,
) -> tuple[Rows, TargetOutput | None]:
    """Keys and values of one chunk of the prompts: C slots from `start`, the same for all rows.

    With `taps`, also what else the target computed.

    Args:
        params: target parameters.
        tokens: prompt tokens of the chunk; anything past a row's end. Rows whose prompt ends
            earlier get garbage there, which no mask shows and later steps overwrite.
        start: first slot of the chunk.
        num_new: tokens of each row that lie in this chunk.
        cached: rows of earlier chunks, or None for the first, which then compiles independently
            of the cache's size.
        target: model functions.
        taps: hidden states wanted besides the final ones; None for keys and values only.
    """
    batch, width = tokens.shape
    offset = jnp.broadcast_to(start, (batch,))
    positions = offset[:, None] + jnp.arange(width, dtype=jnp.int32)
    program = masks.MaskProgram(cached=offset, positions=positions, num_new=num_new)
    output = target.forward(params, tokens, program, cached, taps or ())
    return output.rows, None if taps is None else output


@functools.partial(jax.jit, static_argnames="cache", donate_argnames="state")
def store(state: Any, rows: Rows, start: Int[Array, ""], *, cache: Cache) -> Any:
    """Writes a prefilled chunk; the cache is donated."""
    batch = jax.tree.leaves(rows)[0].shape[-4]
    return cache.write(state, rows, jnp.broadcast_to(start, (batch,)))
