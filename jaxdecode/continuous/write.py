"""From prompts to texts, by a method that denoises vectors: batches, shapes, results."""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecode import engine as engines
from jaxdecode import resolve, results
from jaxdecode.continuous import loop
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import Heads
from jaxdecode.core.protocols import Models, Weights
from jaxdecode.core.types import Canvas, Stats
from jaxdecode.errors import InputError
from jaxdecode.language_model import LanguageModel
from jaxdecode.options import Options, make_request
from jaxdecode.results import Generation, collect

# Shapes are the next power of two from here on, so that few programs are compiled.
_SMALLEST = 8


def run(
    lm: LanguageModel,
    choice: resolve.Choice,
    heads: Heads | str | Path | None,
    rows: Sequence[Sequence[int]],
    keys: Sequence[np.ndarray],
    options: Options,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> Generation:
    """Writes a text for every row.

    Args:
        lm: gives vocabulary, tokenizer and ends of text.
        choice: method and options of its own.
        heads: its trained parts, or their folder.
        rows: token ids of the prompts.
        keys: of the rows' noise.
        options: of the generation.
        batch_size: rows denoised at once.
        progress: called with the number of new tokens after every batch.

    Raises:
        InputError: the heads are not those of the method, or the model is not one that it runs,
            or lies on several devices.
    """
    parts = None if heads is None else head_files.open_heads(heads)
    resolve.check_model(choice.name, lm.config)
    resolve.check_heads(choice.name, parts and parts.spec.kind)
    assert parts is not None
    if lm.mesh is not None:
        raise InputError(
            f"method {choice.name!r} runs on one device; load the model without a mesh."
        )
    # These parts are small, and half precision would blur noise levels.
    fitted = head_files.fitting(parts, lm.config, jnp.float32)
    made = method_of(choice, Models(lm.bound, None, fitted.spec))
    weights = Weights(lm.params, heads=fitted.params)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, tuple] = {}
    for first in range(0, len(rows), batch_size):
        members = order[first : first + batch_size]
        batch = [rows[i] for i in members]
        snapshot = _batch(lm, made, weights, batch, [keys[i] for i in members], options)
        for b, i in enumerate(members):
            found[i] = results.row_result(lm.tokenizer, snapshot, b, len(rows[i]), options)
        if progress is not None:
            progress(sum(len(found[i][1]) for i in members))
    return collect([found[i] for i in range(len(rows))])


@functools.lru_cache(maxsize=64)
def method_of(choice: resolve.Choice, models: Models) -> loop.Continuous:
    """The bundle of a choice; cached, because its identity keys compiled programs."""
    file = choice.entry.continuous
    assert file is not None
    return resolve.continuous(file).make(choice.continuous, models)


def _batch(lm, made, weights, rows, keys, options) -> engines.Snapshot:
    begin = time.perf_counter()
    batch = engines.batch_bucket(len(rows))
    request = make_request(
        options,
        keys,
        batch=batch,
        tokenizer=lm.tokenizer,
        config=lm.config,
        end_tokens=lm.end_tokens,
    )
    memory, scores = loop.prepare(weights, _source(rows, batch), method=made)
    lengths = np.full(batch, made.max_length, np.int32)
    if scores is not None:
        lengths = np.asarray(scores.argmax(-1), np.int32) + 1
    lengths[len(rows) :] = 1
    width = min(bucket(int(lengths.max())), made.max_length)
    canvas = _canvas(lm, rows, options, batch, width)
    written = loop.run(weights, request, canvas, memory, lengths, method=made, width=width)
    host = jax.device_get(written)
    counts = _stats(batch, made, made.extent(width))
    return engines.Snapshot(host, counts, time.perf_counter() - begin)


def bucket(num: int) -> int:
    """The next power of two, from 8 on."""
    return max(_SMALLEST, 1 << (num - 1).bit_length())


def _source(rows: Sequence[Sequence[int]], batch: int) -> loop.Source:
    size = bucket(max(map(len, rows)))
    tokens, real = np.zeros((batch, size), np.int32), np.zeros((batch, size), bool)
    for b, row in enumerate(rows):
        tokens[b, : len(row)], real[b, : len(row)] = row, True
    given: Any = {"tokens": tokens, "real": real}
    return loop.Source(**given)


def _canvas(lm, rows, options, batch, width) -> Canvas:
    slots = bucket(max(map(len, rows))) + width
    return engines.host_canvas(rows, options.max_new_tokens, slots, batch, lm.config)


def _stats(batch: int, made: loop.Continuous, num: int) -> Stats:
    """Every row takes part in every pass."""
    passes = np.full(batch, made.num_steps * made.calls, np.int32)
    counts: dict[str, Any] = {"nfe": passes, "tokens_forwarded": passes * num}
    return Stats(num_accepted=jnp.zeros(batch, jnp.int32), **counts)
