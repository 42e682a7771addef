"""Lookahead decoding: Jacobi trajectories of a window of guesses, read as n-grams, are the drafts.

Every forward pass scores W columns of guesses beside the draft. Level 0 of the window is a chain
of guessed tokens across the columns, and each column carries the N - 2 tokens that the last passes
produced at its end. The target's answer after the last level completes one n-gram of N tokens per
column. These go to a pool keyed by their first token, and the n-grams of the pool that begin with
the pending token are the drafts of a step. The window's nodes are probes: they see the past, their
own column and level 0 up to it, and nothing of them is ever committed.

Exactness: L0 under sample_match. The window is greedy also when sampling: an n-gram is used at
other positions than it was found at, so their noise is of no use to it.
Cost: W (N - 1) + 1 rows per forward pass and N - 1 more for each n-gram found; state
W (N - 1) + buckets x G x N tokens per row.
Source: arXiv:2402.02057 section 3; differs: the window begins with pieces of the prompt instead of
random tokens, its levels are all there from the first step, level 0 begins after the pending token,
and tokens share buckets of the pool.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import Proposal, pytree
from jaxdecode.trees import chain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        window: W, columns of guesses.
        ngram: N, tokens of an n-gram: one to find it by and N - 1 draft tokens.
        pool: G, n-grams kept per bucket, and drafts of one step.
        buckets: places of the pool; tokens whose ids are equal modulo it share one.
        pool_from_prompt: whether the prompt's own n-grams are in the pool at the start.
    """

    window: int = 7
    ngram: int = 5
    pool: int = 7
    buckets: int = 1024
    pool_from_prompt: bool = True

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("window", self.window, low=1)
        checks.integer("ngram", self.ngram, low=2)
        checks.integer("pool", self.pool, low=1)
        checks.integer("buckets", self.buckets, low=1)

    @property
    def levels(self) -> int:
        """Levels of the window."""
        return self.ngram - 1


@pytree
class State:
    """What a row remembers.

    Attributes:
        window: guesses, one line per level.
        pool: n-grams per bucket, oldest first; -1 where there is none.
    """

    window: Int[Array, "B M W"]
    pool: Int[Array, "B H G N"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter."""
    del models
    parent, depth = shape(config)
    num_window = 1 + config.window * config.levels
    counts = sorted({0, 1, -(-config.pool // 2), config.pool})
    widths = tuple(num_window + count * config.levels for count in counts)

    # One program: a loop that is not compiled with what calls it compiles anew at every call.
    start = jax.jit(jax.vmap(lambda tokens, length: _start(tokens, length, config)))

    def init(weights, request, canvas, view, memory):
        del weights, request, view, memory
        return start(canvas.tokens, canvas.length)

    def propose(weights, state, request, canvas, view):
        del weights, request, view
        pending = chain.pending(canvas)
        grams, found = jax.vmap(find)(state.pool, pending[:, 0])
        batch = pending.shape[0]
        window = state.window.reshape(batch, -1)
        tokens = jnp.concatenate([pending, window, grams[..., 1:].reshape(batch, -1)], axis=1)
        full = tokens.shape
        drafts = jnp.repeat(found, config.levels, axis=1)
        valid = jnp.concatenate([jnp.ones((batch, num_window), bool), drafts], axis=1)
        index = np.arange(len(parent))
        return Proposal(
            tokens=jnp.maximum(tokens, 0),
            parent=jnp.broadcast_to(parent, full),
            depth=jnp.broadcast_to(depth, full),
            valid=valid,
            max_depth=config.levels,
            max_children=config.pool,
            probe=jnp.broadcast_to((index > 0) & (index < num_window), full),
        ), state

    def update(weights, state, request, canvas, proposal, verdict, output):
        del weights, request, canvas, proposal, verdict
        last_level = slice(num_window - config.window, num_window)
        answers = jnp.argmax(output.logits[:, last_level], axis=-1).astype(jnp.int32)
        levels = jnp.concatenate([state.window, answers[:, None]], axis=1)
        pool = jax.vmap(insert_all)(state.pool, levels.transpose(0, 2, 1))
        return State(window=levels[:, 1:], pool=pool)

    return Drafter(
        init=init, propose=propose, update=update, widths=widths, max_depth=config.levels
    )


def shape(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Parent and depth of the pending token, the window level by level, and the drafts."""
    parent, depth = [-1], [0]
    for level in range(config.levels):
        for column in range(config.window):
            above = column if level == 0 else 1 + (level - 1) * config.window + column
            parent.append(above)
            depth.append(1 + level + column)
    for _ in range(config.pool):
        first = len(parent)
        parent += [0, *range(first, first + config.levels - 1)]
        depth += range(1, config.levels + 1)
    return np.asarray(parent, np.int32), np.asarray(depth, np.int32)


def find(
    pool: Int[Array, "H G N"], token: Int[Array, ""]
) -> tuple[Int[Array, "G N"], Bool[Array, "G"]]:
    """N-grams of the pool that begin with a token, newest first, and which of them exist."""
    grams = pool[token % pool.shape[0]][::-1]
    found = grams[:, 0] == token
    order = jnp.argsort(~found, stable=True)
    return grams[order], found[order]


def insert_all(pool: Int[Array, "H G N"], grams: Int[Array, "M N"]) -> Int[Array, "H G N"]:
    """Inserts n-grams in turn; those with a negative token are left out."""
    return jax.lax.fori_loop(0, grams.shape[0], lambda i, pool: insert(pool, grams[i]), pool)


def insert(pool: Int[Array, "H G N"], gram: Int[Array, "N"]) -> Int[Array, "H G N"]:
    """Makes an n-gram the newest of its bucket; the oldest goes, or its own earlier copy."""
    num_buckets, num_grams, _ = pool.shape
    bucket = jnp.where((gram >= 0).all(), gram[0] % num_buckets, num_buckets)
    grams = pool[jnp.minimum(bucket, num_buckets - 1)]
    same = (grams == gram).all(-1)
    leaves = jnp.where(same.any(), jnp.argmax(same), 0)
    index = jnp.arange(num_grams)
    moved = grams[jnp.minimum(index + (index >= leaves), num_grams - 1)]
    return pool.at[bucket].set(moved.at[num_grams - 1].set(gram), mode="drop")


def _start(tokens: Int[Array, "L"], length: Int[Array, ""], config: Config) -> State:
    """The window is made of pieces of the prompt that lie evenly over it."""
    column = jnp.arange(config.window, dtype=jnp.int32)
    level = jnp.arange(config.levels, dtype=jnp.int32)
    begin = column * (length + 1) // config.window
    window = tokens[(begin + level[:, None]) % (length + 1)]
    pool = jnp.full((config.buckets, config.pool, config.ngram), -1, jnp.int32)
    if config.pool_from_prompt:
        slot = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None] + jnp.arange(config.ngram)
        inside = slot <= length
        grams = jnp.where(inside, tokens[jnp.minimum(slot, tokens.shape[0] - 1)], -1)
        pool = insert_all(pool, grams)
    return State(window=window, pool=pool)
