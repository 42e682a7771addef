"""Token recycling: the likeliest followers of every token, as the target last saw them.

A table holds, for each token, the k tokens that the target scored highest the last time it read
that token, anywhere. A fixed tree of ranks is filled from it: a node's token is the follower of its
parent's token with the node's rank. After the step every node of the tree updates the table, also
the rejected ones: their scores would otherwise be thrown away.

Exactness: L0 under sample_match. Cost: one gather per level; the top k of every node's scores; a
table of V x k ids per row.
Source: arXiv:2408.08696; differs: of several nodes with one token a fixed one writes (accepted
first, then the shallowest); tokens without followers propose nothing; the prompt's own pairs of
tokens fill the table where it is empty.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.core.types import Canvas, Proposal, Verdict, pytree
from jaxdecode.errors import InputError
from jaxdecode.sampling.top import top_ids
from jaxdecode.trees import chain, static

NONE = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        tree: name of a shipped tree (`configs/trees`) or path of a tree file.
        num_candidates: followers kept per token; more than the tree's highest rank.
    """

    tree: str = "token_recycling_80"
    num_candidates: int = 8

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        check_table(static.load(self.tree), self.tree, self.num_candidates)


@pytree
class State:
    """What every row knows.

    Attributes:
        followers: likeliest next tokens of every token, best first; -1 where unknown.
        written: tokens that the row itself has scored.
    """

    followers: Int[Array, "B V k"]
    written: Bool[Array, "B V"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter; it has no parameters and remembers its table from batch to batch."""
    tree = static.load(config.tree)
    size = models.target.config.vocab_size

    def start(weights, request, canvas, view, memory):
        del weights, request, view
        return init(canvas, memory, size=size, num_candidates=config.num_candidates)

    def propose(weights, state, request, canvas, view):
        del weights, request, view
        fill = jax.vmap(lambda followers, pending: draft(followers, pending, tree))
        tokens, valid = fill(state.followers, chain.pending(canvas)[:, 0])
        arrays = static.proposal_arrays(tree, tokens.shape[0])
        return Proposal(tokens=tokens, valid=valid, **arrays), state

    return Drafter(
        init=start,
        propose=propose,
        update=update,
        remember=remember,
        widths=(1, tree.num_nodes),
        max_depth=tree.max_depth,
    )


def check_table(tree: static.StaticTree, name: str, num_candidates: int) -> None:
    """Refuses a tree that asks for more followers than the table keeps."""
    checks.integer("num_candidates", num_candidates, low=1, high=1024)
    if num_candidates <= tree.max_rank:
        raise InputError(
            f"num_candidates={num_candidates} is too small for tree {name!r}, whose ranks go up to "
            f"{tree.max_rank}; it must be at least {tree.max_rank + 1}."
        )


@functools.partial(jax.jit, static_argnames=("size", "num_candidates"))
def init(
    canvas: Canvas, memory: Int[Array, "V k"] | None, *, size: int, num_candidates: int
) -> State:
    """Tables that start from the memory and, where that is empty, from the prompt's own pairs."""
    if memory is None:
        memory = jnp.full((size, num_candidates), NONE, jnp.int32)
    prime = jax.vmap(_prime, in_axes=(None, 0, 0))
    batch = canvas.length.shape[0]
    return State(
        followers=prime(memory, canvas.tokens, canvas.length),
        written=jnp.zeros((batch, size), bool),
    )


def draft(
    followers: Int[Array, "V k"], pending: Int[Array, ""], tree: static.StaticTree
) -> tuple[Int[Array, "N"], Bool[Array, "N"]]:
    """The tree's tokens below the pending token, and which of them exist."""
    tokens = jnp.zeros(tree.num_nodes, jnp.int32).at[0].set(pending)
    valid = jnp.zeros(tree.num_nodes, bool).at[0].set(True)
    for nodes in tree.levels():
        above = tree.parent[nodes]
        found = followers[tokens[above], tree.rank[nodes]]
        tokens = tokens.at[nodes].set(jnp.maximum(found, 0))
        valid = valid.at[nodes].set(valid[above] & (found != NONE))
    return tokens, valid


def update(weights, state, request, canvas, proposal, verdict, output):
    """Every scored node writes the followers of its token."""
    del weights, request
    batch, num_nodes, size = output.logits.shape
    wanted = state.followers.shape[-1]
    ids = top_ids(output.logits.reshape(-1, size), min(wanted, size))
    ids = jnp.pad(ids, ((0, 0), (0, wanted - ids.shape[1])), constant_values=NONE)
    ids = ids.reshape(batch, num_nodes, wanted)
    followers, written = jax.vmap(_write)(state, canvas.done, proposal, verdict, ids)
    return State(followers=followers, written=written)


@jax.jit
def remember(state: State) -> Int[Array, "V k"]:
    """One table of all rows: of several that scored a token the first one's followers."""
    row = jnp.argmax(state.written, axis=0)
    return jax.vmap(lambda token, b: state.followers[b, token])(jnp.arange(len(row)), row)


def _write(state: State, done, proposal: Proposal, verdict: Verdict, ids: Int[Array, "N k"]):
    """One row's table after a step."""
    (num_nodes,), size = proposal.tokens.shape, state.written.shape[0]
    node = jnp.arange(num_nodes, dtype=jnp.int32)
    step = jnp.arange(verdict.path.shape[0])
    on_path = jnp.where(step <= verdict.num_accepted, verdict.path, num_nodes)
    accepted = jnp.zeros(num_nodes, bool).at[on_path].set(True, mode="drop")
    # Nodes with one token would write in an order that nobody fixes: the least urgent stay out.
    urgency = (~accepted * (proposal.max_depth + 1) + proposal.depth) * num_nodes + node
    same = (proposal.tokens[:, None] == proposal.tokens) & proposal.valid
    first = ~(same & (urgency < urgency[:, None])).any(-1)
    slot = jnp.where(first & proposal.valid & ~done, proposal.tokens, size)
    return (
        state.followers.at[slot].set(ids, mode="drop"),
        state.written.at[slot].set(True, mode="drop"),
    )


def _prime(
    memory: Int[Array, "V k"], tokens: Int[Array, "L"], length: Int[Array, ""]
) -> Int[Array, "V k"]:
    """The memory; tokens it does not know get their followers in the prompt, latest first."""
    known = memory[:, 0] != NONE
    index = jnp.arange(memory.shape[1])

    def add(followers, slot):
        token, new = tokens[slot], tokens[slot + 1]
        row = followers[token]
        old = jnp.argmax(jnp.append(row[:-1] == new, True))  # the place that falls out
        moved = jnp.where(index <= old, jnp.roll(row, 1), row).at[0].set(new)
        wanted = (slot < length) & ~known[token]
        return followers.at[jnp.where(wanted, token, len(known))].set(moved, mode="drop"), None

    return jax.lax.scan(add, memory, jnp.arange(tokens.shape[0] - 1))[0]
