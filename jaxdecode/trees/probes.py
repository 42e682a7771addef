"""Trees with probes: nodes that are no tokens, whose scores are the next step's drafts.

Below every candidate of a tree hangs a chain of probes. Probe j stands j places after its
candidate, sees the candidate's path and the probes before it, and guesses the token j + 1 places
after the candidate. The walk ends at some candidate; its probes say what to draft next, in the same
forward pass that checked the drafts. No token ever sees a probe, so tokens are scored as if there
were none.

How many guesses a step has depends on how many probes the last candidate had: that number is the
row's state, and each state has a layout of its own, kept as one table with a row per state. The
token of a probe is its number, from 0: what stands there instead of a token is the drafter's.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core.protocols import Model, Target
from jaxdecode.core.types import Proposal, Verdict, pytree
from jaxdecode.models import lora
from jaxdecode.sampling.top import top_ids
from jaxdecode.trees.features import last_node
from jaxdecode.trees.static import RankPath, StaticTree


class Layout(NamedTuple):
    """What one state sends: candidates, and how many probes hang below each, the root first."""

    paths: tuple[RankPath, ...]
    num_probes: tuple[int, ...]


class Tables(NamedTuple):
    """The layouts of all states; candidates stand before probes, and padding last.

    Attributes:
        parent: index of the parent; -1 at the root.
        depth: 0 at the root.
        rank: rank of a candidate among its siblings; number of a probe in its chain, from 0.
        probe: which nodes are probes.
        valid: which nodes exist.
        first: node of the first probe of each candidate.
        count: probes of each candidate.
        num_probes: most probes of a candidate.
        max_depth: depth of the deepest candidate.
        max_children: most candidates below one.
        widths: numbers of nodes of the layouts, ascending.
    """

    parent: np.ndarray
    depth: np.ndarray
    rank: np.ndarray
    probe: np.ndarray
    valid: np.ndarray
    first: np.ndarray
    count: np.ndarray
    num_probes: int
    max_depth: int
    max_children: int
    widths: tuple[int, ...]

    @property
    def max_rank(self) -> int:
        """Highest rank of a candidate."""
        return int(np.where(self.probe, 0, self.rank).max())


@pytree
class Guesses:
    """A drafter's state: what the last step's probes say.

    Attributes:
        ids: likeliest tokens of every place after the pending token.
        known: how many places there are guesses for.
    """

    ids: Int[Array, "B n R"]
    known: Int[Array, "B"]


def full(tree: StaticTree, num_probes: int) -> list[Layout]:
    """Layouts of a tree whose every candidate has all probes: a row knows nothing or everything."""
    root = Layout((), (num_probes,))
    whole = Layout(tree.paths, (num_probes,) * tree.num_nodes)
    return [root] * num_probes + [whole]


def tables(layouts: Sequence[Layout]) -> Tables:
    """Tables of the layouts of states 0, 1, ..."""
    sizes = [1 + len(layout.paths) + sum(layout.num_probes) for layout in layouts]
    rows = [_row(layout, max(sizes)) for layout in layouts]
    columns = [np.stack(column) for column in zip(*rows, strict=True)]
    trees = [StaticTree(layout.paths) for layout in layouts if layout.paths]
    return Tables(
        *columns,
        num_probes=max(max(layout.num_probes) for layout in layouts),
        max_depth=max((tree.max_depth for tree in trees), default=0),
        max_children=max((tree.max_children for tree in trees), default=1),
        widths=tuple(sorted(set(sizes))),
    )


def _row(layout: Layout, width: int) -> tuple[np.ndarray, ...]:
    tree = StaticTree(layout.paths)
    num = tree.num_nodes
    parent, depth, rank, first = (np.zeros(width, np.int32) for _ in range(4))
    probe, valid = np.zeros(width, bool), np.zeros(width, bool)
    count = np.zeros(width, np.int32)
    parent[:num], depth[:num], rank[:num] = tree.parent, tree.depth, tree.rank
    count[:num] = layout.num_probes
    node = num
    for candidate in range(num):
        first[candidate] = node
        for j in range(layout.num_probes[candidate]):
            parent[node] = node - 1 if j else candidate
            depth[node], rank[node], probe[node] = depth[candidate] + 1 + j, j, True
            node += 1
    valid[:node] = True
    return parent, depth, rank, probe, valid, first, count


def propose(
    table: Tables, state: Int[Array, "B"], pending: Int[Array, "B 1"], ids: Int[Array, "B n R"]
) -> Proposal:
    """The proposal of every row's state.

    Args:
        table: layouts.
        state: row of the table.
        pending: the pending tokens.
        ids: the candidate of depth d and rank r has token `ids[:, d - 1, r]`.
    """
    names = ("parent", "depth", "rank", "probe", "valid")
    at = {name: jnp.asarray(getattr(table, name))[state] for name in names}

    def drafts(ids, depth, rank):
        return ids[jnp.clip(depth - 1, 0, len(ids) - 1), jnp.minimum(rank, ids.shape[1] - 1)]

    drafted = jax.vmap(drafts)(ids, at["depth"], at["rank"])
    tokens = jnp.where(at["probe"], at["rank"], drafted).at[:, 0].set(pending[:, 0])
    return Proposal(
        tokens=tokens.astype(jnp.int32),
        parent=at["parent"],
        depth=at["depth"],
        valid=at["valid"],
        max_depth=table.max_depth,
        max_children=table.max_children,
        probe=at["probe"],
    )


def below(
    table: Tables, state: Int[Array, "B"], verdict: Verdict
) -> tuple[Int[Array, "B n"], Int[Array, "B"]]:
    """Nodes of the probes below the last accepted candidate, and how many of them exist."""
    node = last_node(verdict)
    first, count = (jnp.asarray(x)[state, node] for x in (table.first, table.count))
    return first[:, None] + jnp.arange(table.num_probes, dtype=jnp.int32), count


def candidate_of(proposal: Proposal, num_probes: int) -> Int[Array, "B N"]:
    """The candidate that each probe hangs below; of a candidate itself."""
    assert proposal.probe is not None
    index = jnp.arange(proposal.tokens.shape[1], dtype=jnp.int32)

    def row(parent, probe):
        node = index
        for _ in range(num_probes):
            node = jnp.where(probe[node], parent[node], node)
        return node

    return jax.vmap(row)(proposal.parent, proposal.probe)


def at(rows: Float[Array, "B N *D"], nodes: Int[Array, "B n"]) -> Float[Array, "B n *D"]:
    """`rows[b, nodes[b]]`; nodes that a narrower step does not have give its last."""
    return jax.vmap(lambda row, index: row[jnp.minimum(index, len(row) - 1)])(rows, nodes)


def start(table: Tables, num_ids: int):
    """A drafter's `init`: a row begins without guesses, with the probes of the pending token."""

    def init(weights, request, canvas, view, memory):
        del weights, request, view, memory
        batch = canvas.length.shape[0]
        ids = jnp.zeros((batch, table.num_probes, num_ids), jnp.int32)
        return Guesses(ids=ids, known=jnp.zeros(batch, jnp.int32))

    return init


def read(table: Tables):
    """A drafter's `update`: the likeliest tokens of the probes below the last candidate."""

    def update(weights, state, request, canvas, proposal, verdict, output):
        del weights, request, canvas, proposal
        nodes, known = below(table, state.known, verdict)
        scores = at(output.logits, nodes)
        ids = top_ids(scores.reshape(-1, scores.shape[-1]), state.ids.shape[-1])
        return Guesses(ids=ids.reshape(state.ids.shape).astype(jnp.int32), known=known)

    return update


def enter(
    target: Target,
    params: Any,
    heads: Any,
    tokens: Int[Array, "B T"],
    probe: Bool[Array, "B T"],
) -> tuple[Any, Float[Array, "B T D"]]:
    """The target's parameters and input rows of a pass in which probes are embeddings of their own.

    Args:
        target: its functions.
        params: its parameters.
        heads: `embedding` of every probe; `lora`, adapters of the probes' rows, if there are any.
        tokens: tokens; a probe's is its number.
        probe: which rows are probes.
    """
    assert target.embed is not None
    own = heads["embedding"]
    x = target.embed(params, tokens)
    x = jnp.where(probe[..., None], own[jnp.minimum(tokens, len(own) - 1)].astype(x.dtype), x)
    if lora.NAME in heads:
        params = lora.attach(params, heads[lora.NAME], probe.astype(jnp.float32))
    return params, x


def score(model: Model):
    """A drafter's `score`, with probes as in `enter`."""
    target = model.target

    def run(weights, proposal, program, view, taps):
        params, x = enter(target, weights.target, weights.heads, proposal.tokens, proposal.probe)
        return target.forward(params, x, program, view, taps)

    return run
