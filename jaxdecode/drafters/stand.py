"""Stochastic n-gram drafting: children drawn from what the target's law was in this context before.

A table keeps, for the last three, two and one tokens of every committed position, the running mean
of the target's law there: its likeliest tokens and their probabilities. Drafts follow the longest
context that is known; the children of a node are drawn from its entry without replacement
(Gumbel noise, the highest first), and that entry is the recorded law.

Exactness: L1 under recursive rejection. Cost: one lookup of three slots per inner node; the top k
of the laws on the accepted path.
Source: arXiv:2506.04708; differs: the longest known context alone decides, lower orders are not
mixed in; hashed slots in which a new context displaces an old one; the prompt enters as certain
laws; nothing is shared between rows. Details of table and drafting are ours.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import Canvas, Proposal, Sampling, SparseProbs, pytree
from jaxdecode.drafters.aded import slot_of
from jaxdecode.drafters.token_recycling import check_table
from jaxdecode.errors import InputError
from jaxdecode.sampling import noise, warp
from jaxdecode.sampling.top import top_ids
from jaxdecode.trees import static

NONE = -1
# Tokens of the longest context: n-grams of 4, 3 and 2 tokens.
CONTEXT = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        tree: name of a shipped tree (`configs/trees`) or path of a tree file.
        num_candidates: tokens kept of each law; more than the tree's highest rank.
        num_slots: contexts the table has room for; a power of two.
    """

    tree: str = "recycling_32"
    num_candidates: int = 8
    num_slots: int = 16384

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        tree = static.load(self.tree)
        check_table(tree, self.tree, self.num_candidates)
        if not tree.is_gapless():
            raise InputError(
                f"tree {self.tree!r} leaves out ranks between siblings or lists them out of order, "
                "but drafts are drawn one after another; use one in which siblings have ranks "
                "0, 1, 2, ... in this order."
            )
        checks.integer("num_slots", self.num_slots, low=1, high=1 << 20)
        wanted = "a power of two"
        checks.number("num_slots", self.num_slots, wanted, lambda x: x & (x - 1) == 0)


@pytree
class Table:
    """Mean laws by context, one context per slot; per row or without the first axis.

    Attributes:
        contexts: the last tokens; -1 in front of a shorter context, and where empty.
        tokens: likeliest next tokens; -1 where there are fewer.
        probs: their mean probabilities.
        counts: laws that entered the mean.
    """

    contexts: Int[Array, "B S 3"]
    tokens: Int[Array, "B S K"]
    probs: Float[Array, "B S K"]
    counts: Int[Array, "B S"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter; it has no parameters and forgets everything after a batch."""
    del models
    tree = static.load(config.tree)

    def start(weights, request, canvas, view, memory):
        del weights, request, view, memory
        return _init(canvas, config=config)

    def propose(weights, state, request, canvas, view):
        del weights, view
        greedy = request.sampling.temperature < warp.GREEDY_BELOW
        every = jax.vmap(functools.partial(draft, tree=tree))
        tokens, valid, law = every(state, request.key, greedy, canvas.tokens, canvas.length)
        arrays = static.proposal_arrays(tree, tokens.shape[0])
        return Proposal(
            tokens=tokens, valid=valid, draft_probs=law, draws="without_replacement", **arrays
        ), state

    return Drafter(
        init=start,
        propose=propose,
        update=_update,
        widths=(1, tree.num_nodes),
        max_depth=tree.max_depth,
    )


def empty(config: Config) -> Table:
    """The table of one row before anything was seen."""
    size, k = config.num_slots, config.num_candidates
    return Table(
        contexts=jnp.full((size, CONTEXT), NONE, jnp.int32),
        tokens=jnp.full((size, k), NONE, jnp.int32),
        probs=jnp.zeros((size, k), jnp.float32),
        counts=jnp.zeros(size, jnp.int32),
    )


def orders(context: Int[Array, "3"]) -> Int[Array, "3 3"]:
    """The context itself and its shorter ends, longest first."""
    shorter = np.arange(CONTEXT) >= np.arange(CONTEXT)[:, None]
    return jnp.where(shorter, context, NONE)


def observe(
    table: Table,
    contexts: Int[Array, "M 3"],
    tokens: Int[Array, "M K"],
    probs: Float[Array, "M K"],
    wanted: Bool[Array, "M"],
) -> Table:
    """One row's table after the laws of M positions, in that order."""
    num_slots, k = table.tokens.shape

    def add(table: Table, law):
        context, tokens, probs, wanted = law
        slot = slot_of(context, num_slots)
        known = (table.contexts[slot] == context).all()
        count = jnp.where(known, table.counts[slot], 0)
        old = jnp.where(known, table.tokens[slot], NONE)
        equal = (old[:, None] == tokens) & (probs > 0)
        total = jnp.where(known, table.probs[slot], 0.0) * count + (equal * probs).sum(1)
        fresh = jnp.where(equal.any(0), 0.0, probs)
        mean, best = jax.lax.top_k(jnp.concatenate([total, fresh]) / (count + 1), k)
        slot = jnp.where(wanted, slot, num_slots)

        def put(array, value):
            return array.at[slot].set(value, mode="drop")

        table = Table(
            contexts=put(table.contexts, context),
            tokens=put(table.tokens, jnp.where(mean > 0, jnp.append(old, tokens)[best], NONE)),
            probs=put(table.probs, mean),
            counts=put(table.counts, count + 1),
        )
        return table, None

    def each(x):
        return jnp.repeat(x, CONTEXT, axis=0)

    every = jax.vmap(orders)(contexts).reshape(-1, CONTEXT)
    return jax.lax.scan(add, table, (every, each(tokens), each(probs), each(wanted)))[0]


def lookup(table: Table, context: Int[Array, "3"]) -> tuple[Int[Array, "K"], Float[Array, "K"]]:
    """The law after the longest known end of the context; no probability at all if none is."""
    ends = orders(context)
    slots = jax.vmap(lambda end: slot_of(end, table.counts.shape[0]))(ends)
    known = (table.contexts[slots] == ends).all(-1) & (table.counts[slots] > 0)
    slot = slots[jnp.argmax(known)]
    probs = jnp.where(known.any(), table.probs[slot], 0.0)
    return jnp.maximum(table.tokens[slot], 0), probs / jnp.maximum(probs.sum(), 1e-30)


def draft(
    table: Table,
    key: Array,
    greedy: Bool[Array, ""],
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    tree: static.StaticTree,
) -> tuple[Int[Array, "N"], Bool[Array, "N"], SparseProbs]:
    """One row's tree, which of its nodes exist, and the law their children were drawn from."""
    size, k = tree.num_nodes, table.tokens.shape[1]
    stream = noise.stream(key, length, purpose=noise.DRAFT)
    gumbel = jnp.where(greedy, 0.0, jax.random.gumbel(stream, (size, k), jnp.float32))
    contexts = jnp.full((size, CONTEXT), NONE, jnp.int32).at[0].set(context_at(tokens, length))
    valid = jnp.zeros(size, bool).at[0].set(True)
    law = SparseProbs(tokens=jnp.zeros((size, k), jnp.int32), probs=jnp.zeros((size, k)))
    for nodes in tree.levels():
        inner, place = np.unique(tree.parent[nodes], return_inverse=True)
        found, probs = jax.vmap(lambda context: lookup(table, context))(contexts[inner])
        scores, drawn = jax.lax.top_k(jnp.log(probs) + gumbel[inner], k)
        sharp = jnp.zeros_like(probs).at[:, 0].set(1.0) * (probs[:, :1] > 0)
        law = SparseProbs(
            tokens=law.tokens.at[inner].set(found),
            probs=law.probs.at[inner].set(jnp.where(greedy, sharp, probs)),
        )
        rank = tree.rank[nodes]
        child = found[place, drawn[place, rank]]
        exists = valid[tree.parent[nodes]] & (scores[place, rank] > -jnp.inf)
        valid = valid.at[nodes].set(exists)
        above = contexts[tree.parent[nodes]]
        contexts = contexts.at[nodes].set(jnp.concatenate([above[:, 1:], child[:, None]], axis=1))
    return contexts[:, -1], valid, law


def context_at(tokens: Int[Array, "L"], slot: Int[Array, ""]) -> Int[Array, "3"]:
    """The tokens up to a slot; -1 before the row's first."""
    slots = slot - (CONTEXT - 1) + jnp.arange(CONTEXT)
    inside = jnp.clip(slots, 0, tokens.shape[0] - 1)
    return jnp.where(slots >= 0, tokens[inside], NONE)


def law_of(
    logits: Float[Array, "M V"], sampling: Sampling, k: int
) -> tuple[Int[Array, "M k"], Float[Array, "M k"]]:
    """The k likeliest tokens of one row's warped laws, and their probabilities.

    As `warp.warp`, without the repetition penalty and without sorting the vocabulary: an estimate
    is all that is needed, since drafts are verified against the law they were really drawn from.
    """
    none = dict.fromkeys(("top_k", "top_p", "min_p", "repetition_penalty"))
    plain = dataclasses.replace(sampling, **none)
    scores = jax.vmap(lambda row: warp.warp(row, plain, None))(logits)
    k_found = min(k, scores.shape[1])
    ids = top_ids(scores, k_found)
    probs = jnp.exp(jnp.take_along_axis(scores, ids, 1) - jax.nn.logsumexp(scores, -1)[:, None])
    keep = jnp.ones(probs.shape, bool)
    if sampling.top_k is not None:
        keep &= (jnp.arange(k_found) < sampling.top_k) | (sampling.top_k == 0)
    if sampling.top_p is not None:
        inside = jnp.where(keep, probs, 0.0) / jnp.where(keep, probs, 0.0).sum(-1, keepdims=True)
        keep &= (jnp.cumsum(inside, -1) - inside < sampling.top_p) | (sampling.top_p >= 1.0)
    if sampling.min_p is not None:
        keep &= probs >= sampling.min_p * probs[:, :1]
    probs = jnp.where(keep, probs, 0.0)
    room = ((0, 0), (0, k - k_found))
    return jnp.pad(ids, room), jnp.pad(probs / probs.sum(-1, keepdims=True), room)


@functools.partial(jax.jit, static_argnames="config")
def _init(canvas: Canvas, *, config: Config) -> Table:
    """Every row's table after its own prompt."""

    def row(tokens, length):
        slots = jnp.arange(tokens.shape[0] - 1)
        contexts = jax.vmap(lambda slot: context_at(tokens, slot))(slots)
        shape = (len(slots), config.num_candidates)
        following = jnp.zeros(shape, jnp.int32).at[:, 0].set(tokens[1:])
        certain = jnp.zeros(shape, jnp.float32).at[:, 0].set(1.0)
        return observe(empty(config), contexts, following, certain, slots < length)

    return jax.vmap(row)(canvas.tokens, canvas.length)


def _update(weights, state, request, canvas, proposal, verdict, output):
    """The laws on the accepted path enter the table; rejected nodes had no real context."""
    del weights, proposal
    bias = request.sampling.logit_bias

    def row(table, sampling, tokens, length, done, verdict, logits):
        sampling = dataclasses.replace(sampling, logit_bias=bias)
        index = jnp.arange(verdict.path.shape[0])
        slots = length - verdict.num_accepted - 1 + index
        contexts = jax.vmap(lambda slot: context_at(tokens, slot))(slots)
        law = law_of(logits[verdict.path], sampling, table.tokens.shape[1])
        return observe(table, contexts, *law, (index <= verdict.num_accepted) & ~done)

    per_row = dataclasses.replace(request.sampling, logit_bias=None)
    args = (canvas.tokens, canvas.length, canvas.done, verdict, output.logits)
    return jax.vmap(row)(state, per_row, *args)
