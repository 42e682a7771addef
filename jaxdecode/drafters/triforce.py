"""TriForce's middle level: the target drafts for itself, reading only a part of its own cache.

The part is chosen per layer and key/value head: chunks of positions whose mean key fits the newest
key best, the first chunk always (the attention sink), and everything recent. Keys carry their
positions already, so what is chosen can be packed without gaps and counted as if it were a short
cache. The choice is redone every `refresh` positions and is a function of the row alone. Layers
with a window read little in any case: they see the cache as it is.

Exactness: L0 under sample_match; drafts are drawn with the noise of their positions.
Cost: per draft token all weights, but budget instead of all positions in attention; per step the
gathering of what was chosen. It pays where the cache outweighs the weights: long texts, large
batches. State chunk indices.
Source: arXiv:2404.11912; differs: the newest key stands in for the query, which would take a tap
inside attention that nothing else needs; the choice is renewed while decoding, and not made once
per prompt; drafts and target share noise in place of the accept-reject rule; the tiny model that
drafts for this drafter is left out.
"""

import dataclasses
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import pytree
from jaxdecode.drafters import none
from jaxdecode.errors import InputError
from jaxdecode.trees import unroll

_KEY_SLOTS, _VALUE_SLOTS = -1, -2  # the axis of slots


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: draft tokens per step.
        budget: positions that the draft sees when they are chosen: chunks and recent ones.
        chunk: positions that are chosen together.
        recent: newest positions, which are always seen.
        refresh: positions after which the choice is made anew; till then new ones are added.
    """

    num_draft: int = 4
    budget: int = 256
    chunk: int = 8
    recent: int = 32
    refresh: int = 16

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        for name in ("num_draft", "budget", "chunk", "recent", "refresh"):
            checks.integer(name, getattr(self, name), low=1)
        if self.budget < self.recent + self.chunk:
            raise InputError(
                f"budget={self.budget} is too small; it must hold the recent positions and one "
                f"chunk, {self.recent + self.chunk} in all."
            )

    @property
    def num_chunks(self) -> int:
        """Chunks that fit the budget."""
        return (self.budget - self.recent) // self.chunk

    @property
    def num_slots(self) -> int:
        """Slots the draft may see: the recent ones grow by part of a chunk and till a refresh."""
        return self.num_chunks * self.chunk + self.recent + self.chunk - 1 + self.refresh - 1


@pytree
class State:
    """What the draft sees.

    Attributes:
        built: length of each row when its chunks were chosen.
        chunks: chosen chunks, ascending, for every run of layers without window: an array
            [B, K, C] per layer or one stacked [H, B, K, C].
    """

    built: Int[Array, "B"]
    chunks: tuple[Any, ...]


def make(config: Config, models: Models) -> Drafter:
    """The drafter."""
    target, windows = models.target.target, models.target.config.layer_windows
    embed, layers, norm = unroll.parts(target)
    runs = _runs(windows)
    full = [(first, last) for first, last in runs if not windows[first]]

    def init(weights, request, canvas, view, memory):
        del weights, request, memory

        def zeros(key):
            num_chunks = min(config.num_chunks, _num_chunks(key.shape[_KEY_SLOTS], config))
            return jnp.zeros((*key.shape[:-2], num_chunks), jnp.int32)

        chunks = tuple(jax.tree.map(zeros, view[0][first:last]) for first, last in full)
        return State(built=jnp.full_like(canvas.length, -config.refresh), chunks=chunks)

    def renew(state, canvas, view):
        stale = (canvas.length - state.built >= config.refresh) & ~canvas.done

        def layer(key, old):
            # Mapped over heads, which share the row's length, then over rows.
            heads = jax.vmap(lambda key, length: choose(key, length, config), (0, None))
            each = jax.vmap(heads)
            rows = each if key.ndim == 4 else jax.vmap(each, (0, None))
            return jnp.where(stale[:, None, None], rows(key, canvas.length), old)

        def rebuild():
            return tuple(
                jax.tree.map(layer, view[0][first:last], old)
                for (first, last), old in zip(full, state.chunks, strict=True)
            )

        chunks = jax.lax.cond(stale.any(), rebuild, lambda: state.chunks)
        return State(built=jnp.where(stale, canvas.length, state.built), chunks=chunks)

    def propose(weights, state, request, canvas, view):
        params, state = weights.target, renew(state, canvas, view)
        num_seen = count(canvas.length, state.built, config)
        chunks = dict(zip(full, state.chunks, strict=True))
        seen = [_seen(view, run, state.built, chunks.get(run), config) for run in runs]

        def hidden_of(tokens):
            block = unroll.program(canvas, tokens.shape[1])
            packed = dataclasses.replace(block, cached=num_seen)
            x = embed(params, tokens)
            for run, cached in zip(runs, seen, strict=True):
                x, _ = layers(params, x, packed if run in chunks else block, cached, *run)
            return norm(params, x)

        proposal = unroll.propose(
            request,
            canvas,
            num_draft=config.num_draft,
            hidden_of=hidden_of,
            logits_of=lambda hidden: target.logits(params, hidden),
        )
        return proposal, state

    widths = (1, config.num_draft + 1)
    stateless = none.stateless(propose, widths=widths, max_depth=config.num_draft)
    return stateless._replace(init=init)


def _runs(windows: tuple[int, ...]) -> list[tuple[int, int]]:
    """Neighbouring layers that all have a window or all have none, as (first, last + 1)."""
    groups = [list(group) for _, group in groupby(range(len(windows)), lambda i: bool(windows[i]))]
    return [(group[0], group[-1] + 1) for group in groups]


def _num_chunks(num_slots: int, config: Config) -> int:
    return -(-num_slots // config.chunk)


def _tail(built: Int[Array, "*B"], config: Config) -> Int[Array, "*B"]:
    """First position that is seen because it is recent; all before it are whole chunks."""
    return jnp.maximum(built - config.recent, 0) // config.chunk * config.chunk


def _kept(built: Int[Array, "*B"], config: Config) -> Int[Array, "*B"]:
    """Positions seen in chosen chunks."""
    return jnp.minimum(_tail(built, config), config.num_chunks * config.chunk)


def count(length: Int[Array, "*B"], built: Int[Array, "*B"], config: Config) -> Int[Array, "*B"]:
    """Positions that a row sees, the pending token aside."""
    return _kept(built, config) + length - _tail(built, config)


def choose(key: Float[Array, "d S"], length: Int[Array, ""], config: Config) -> Int[Array, "C"]:
    """Chunks of one head and row that the draft shall see, ascending; unused entries come last."""
    width, num_slots = key.shape
    total = _num_chunks(num_slots, config)
    whole = jnp.pad(key, ((0, 0), (0, total * config.chunk - num_slots))).astype(jnp.float32)
    means = whole.reshape(width, total, config.chunk).mean(-1)
    newest = jnp.take(key, jnp.maximum(length - 1, 0), axis=1).astype(jnp.float32)
    index = jnp.arange(total, dtype=jnp.int32)
    score = jnp.where(index == 0, jnp.inf, newest @ means)
    old = index * config.chunk < _tail(length, config)
    _, best = jax.lax.top_k(jnp.where(old, score, -jnp.inf), min(config.num_chunks, total))
    return jnp.sort(jnp.where(old[best], best, total)).astype(jnp.int32)


def slots(
    chunks: Int[Array, "C"], built: Int[Array, ""], num_slots: int, config: Config
) -> Int[Array, "R"]:
    """Positions that one head and row sees: its chunks, then all from the tail on."""
    index = jnp.arange(num_slots, dtype=jnp.int32)
    kept = _kept(built, config)
    chunk = chunks[jnp.minimum(index // config.chunk, chunks.shape[0] - 1)]
    chosen = chunk * config.chunk + index % config.chunk
    return jnp.where(index < kept, chosen, _tail(built, config) + index - kept)


def _seen(view, run: tuple[int, int], built, chunks, config: Config):
    """Keys and values of a run of layers as the draft sees them; those of windows are whole."""
    cached = (view[0][run[0] : run[1]], view[1][run[0] : run[1]])
    if chunks is None:
        return cached

    def pick(rows, chunks, axis):
        num_slots = min(config.num_slots, rows.shape[axis])
        heads = jax.vmap(lambda chunks, built: slots(chunks, built, num_slots, config), (0, None))
        each = jax.vmap(heads)
        index = (each if rows.ndim == 4 else jax.vmap(each, (0, None)))(chunks, built)
        index = jnp.expand_dims(index, -1 if axis == _VALUE_SLOTS else -2)
        return jnp.take_along_axis(rows, index, axis=axis, mode="clip")

    key = jax.tree.map(lambda rows, chunks: pick(rows, chunks, _KEY_SLOTS), cached[0], chunks)
    value = jax.tree.map(lambda rows, chunks: pick(rows, chunks, _VALUE_SLOTS), cached[1], chunks)
    return key, value
