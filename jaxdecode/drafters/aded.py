"""Adaptive draft-verification: a tri-gram table of the row's text, searched best first.

The table counts which tokens followed each pair of tokens. Drafts are the likeliest continuations
by its counts: a tree that grows where the products of probabilities are high. Successors that were
seen rarely get a bonus, so that one unlucky count does not close a branch.

Exactness: L0 under sample_match. Cost: `max_depth` rounds of at most `width` table lookups.
Source: arXiv:2407.12021; differs: best-first search in place of Monte Carlo tree search, without
random numbers; a table of hashed slots in which a new pair displaces an old one; counts start from
the prompt and from earlier batches instead of a corpus.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import Canvas, pytree
from jaxdecode.trees import dynamic

NONE = -1
# A count stops here, so that old text cannot outvote new text for ever.
MAX_COUNT = 75.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: draft tokens per step.
        max_depth: longest path.
        width: nodes of a level that are expanded.
        num_candidates: successors kept per pair of tokens.
        exploration: weight of the bonus for successors that were seen rarely; 0 gives none.
        num_slots: pairs of tokens the table has room for; a power of two.
    """

    num_draft: int = 24
    max_depth: int = 8
    width: int = 6
    num_candidates: int = 8
    exploration: float = 0.5
    num_slots: int = 8192

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_draft", self.num_draft, low=1, high=63)
        checks.integer("max_depth", self.max_depth, low=1, high=64)
        checks.integer("width", self.width, low=1, high=64)
        checks.integer("num_candidates", self.num_candidates, low=1, high=64)
        checks.number("exploration", self.exploration, ">= 0", lambda x: x >= 0)
        checks.integer("num_slots", self.num_slots, low=1, high=1 << 20)
        wanted = "a power of two"
        checks.number("num_slots", self.num_slots, wanted, lambda x: x & (x - 1) == 0)


@pytree
class Table:
    """Successors of pairs of tokens, one pair per slot; per row or without the first axis.

    Attributes:
        pairs: the pair in each slot; -1 where empty.
        tokens: its successors; -1 where there are fewer.
        counts: how often each was seen.
        written: slots that the row itself changed.
    """

    pairs: Int[Array, "B S 2"]
    tokens: Int[Array, "B S C"]
    counts: Float[Array, "B S C"]
    written: Bool[Array, "B S"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter; it has no parameters and remembers its table from batch to batch."""
    del models

    def start(weights, request, canvas, view, memory):
        del weights, request, view
        return init(canvas, memory, config=config)

    def propose(weights, state, request, canvas, view):
        del weights, request, view
        search = jax.vmap(lambda table, tokens, length: draft(table, tokens, length, config))
        chosen = search(state, canvas.tokens, canvas.length)
        bounds = dict(max_depth=config.max_depth, max_children=config.num_candidates)
        return dynamic.proposal(chosen, **bounds), state

    return Drafter(
        init=start,
        propose=propose,
        update=_update,
        remember=remember,
        widths=tuple(dict.fromkeys([1, 1 + config.num_draft // 4, 1 + config.num_draft])),
        max_depth=config.max_depth,
    )


def slot_of(context: Int[Array, "n"], num_slots: int) -> Int[Array, ""]:
    """The slot of a few token ids: multiplicative hashing."""
    value = jnp.uint32(0)
    for token in context:
        value = (value ^ token.astype(jnp.uint32)) * jnp.uint32(2654435761)
        value ^= value >> 15
    return (value % num_slots).astype(jnp.int32)


def empty(config: Config) -> Table:
    """The table of one row before anything was seen."""
    size = config.num_slots
    return Table(
        pairs=jnp.full((size, 2), NONE, jnp.int32),
        tokens=jnp.full((size, config.num_candidates), NONE, jnp.int32),
        counts=jnp.zeros((size, config.num_candidates), jnp.float32),
        written=jnp.zeros(size, bool),
    )


@functools.partial(jax.jit, static_argnames="config")
def init(canvas: Canvas, memory: Table | None, *, config: Config) -> Table:
    """Every row's table: the memory, and the row's own prompt."""
    table = empty(config) if memory is None else memory

    def row(tokens, length):
        slots = jnp.arange(tokens.shape[0])
        return observe(table, tokens, slots, slots <= length)

    return jax.vmap(row)(canvas.tokens, canvas.length)


def observe(
    table: Table, tokens: Int[Array, "L"], slots: Int[Array, "M"], wanted: Bool[Array, "M"]
) -> Table:
    """One row's table after the tri-grams that end in the given canvas slots, in that order."""
    num_slots = table.pairs.shape[0]

    def add(table: Table, step):
        slot, wanted = step
        context = tokens[jnp.maximum(slot - 2 + jnp.arange(2), 0)]
        new = tokens[jnp.minimum(slot, tokens.shape[0] - 1)]
        row = slot_of(context, num_slots)
        successors, counts = lookup(table, context)
        equal = successors == new
        # A successor that is not there yet takes an empty place, or that of the rarest.
        place = jnp.where(equal.any(), jnp.argmax(equal), jnp.argmin(counts))
        count = jnp.where(equal.any(), jnp.minimum(counts[place] + 1, MAX_COUNT), 1.0)
        row = jnp.where(wanted & (slot >= 2), row, num_slots)

        def put(array, value):
            return array.at[row].set(value, mode="drop")

        table = Table(
            pairs=put(table.pairs, context),
            tokens=put(table.tokens, successors.at[place].set(new)),
            counts=put(table.counts, counts.at[place].set(count)),
            written=put(table.written, True),
        )
        return table, None

    return jax.lax.scan(add, table, (slots, wanted))[0]


def lookup(table: Table, context: Int[Array, "2"]) -> tuple[Int[Array, "C"], Float[Array, "C"]]:
    """Successors of a pair and their counts; -1 and 0 where there are none."""
    row = slot_of(context, table.pairs.shape[0])
    known = (table.pairs[row] == context).all()
    return jnp.where(known, table.tokens[row], NONE), jnp.where(known, table.counts[row], 0.0)


def draft(
    table: Table, tokens: Int[Array, "L"], length: Int[Array, ""], config: Config
) -> dynamic.Chosen:
    """The tree below one row's pending token."""

    def children(carry, contexts):
        successors, counts = jax.vmap(lambda context: lookup(table, context))(contexts)
        scores = jnp.log(probabilities(counts, config.exploration))
        shape = (*successors.shape, 2)
        last = jnp.broadcast_to(contexts[:, None, 1:], (*successors.shape, 1))
        below = jnp.concatenate([last, successors[:, :, None]], axis=-1)
        return successors, scores, below.reshape(shape), carry

    root = tokens[jnp.maximum(length - 1 + jnp.arange(2), 0)]
    grown, _ = dynamic.grow(children, None, root, levels=config.max_depth, width=config.width)
    chosen = dynamic.select(grown, tokens[length], config.num_draft)
    return dataclasses.replace(chosen, tokens=jnp.maximum(chosen.tokens, 0))


def probabilities(counts: Float[Array, "... C"], exploration: float) -> Float[Array, "... C"]:
    """Shares of the successors; one count's worth is left for what was never seen."""
    total = counts.sum(-1, keepdims=True)
    bonus = exploration * jnp.sqrt(total) / (1.0 + counts)
    weight = jnp.where(counts > 0, counts + bonus, 0.0)
    return weight / (weight.sum(-1, keepdims=True) + 1.0)


def _update(weights, state, request, canvas, proposal, verdict, output):
    """The tokens of the step enter the table."""
    del weights, request, proposal, output

    def row(table, tokens, length, done, num_accepted):
        index = jnp.arange(verdict.path.shape[1])
        slots = length - num_accepted + index
        return observe(table, tokens, slots, (index <= num_accepted) & ~done)

    return jax.vmap(row)(state, canvas.tokens, canvas.length, canvas.done, verdict.num_accepted)


@jax.jit
def remember(state: Table) -> Table:
    """One table of all rows: each slot of the first row that changed it."""
    row = jnp.argmax(state.written, axis=0)
    slot = jnp.arange(row.shape[0])
    merged = jax.tree.map(lambda x: jax.vmap(lambda b, s: x[b, s])(row, slot), state)
    return dataclasses.replace(merged, written=jnp.zeros_like(merged.written))
