"""Drafts only as much as pays: picks the source and the size of every step's draft by its price.

Where the row's text repeats itself the draft is the copied chain, elsewhere the recycling tree.
How often each kind of draft was right is counted per row, also when none was sent: the first
drafted token can always be held against the token that was emitted. The prices are measured: the
time of a step of every compiled width, for this model, device and batch size. Each step takes the
width with the most expected tokens per second, and no draft is one of the widths.

The choice is the batch's, since its rows share a forward pass; it changes how many steps a row
takes, never its tokens.

Exactness: L0 under sample_match. Cost: prompt lookup; and, where trees can pay, token recycling.
Source: ours; the sources are `prompt_lookup` and arXiv:2408.08696.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models, Weights
from jaxdecode.core.types import Proposal, pytree
from jaxdecode.drafters import prompt_lookup, token_recycling
from jaxdecode.errors import InputError
from jaxdecode.trees import chain, static

# Kinds of drafts: 0 is the tree; then copies, by the length of the match: 1, 2, 3-4, 5-7, more.
_MATCH_STARTS = np.asarray([1, 2, 3, 5, 8])
# How often a drafted token of each kind is right before anything was counted, and how many counts
# that is worth: SmolLM2-135M on Spec-Bench prompts.
_PRIOR = np.asarray([0.5, 0.3, 0.5, 0.6, 0.75, 0.88], np.float32)
_PRIOR_COUNT = 8.0
_DECAY = 0.97
# How often the follower of each rank is the next token, relative to the table as a whole. Orders
# the nodes of the tree, and says what a part of it is worth.
_RANK_SHARE = (0.62, 0.14, 0.08, 0.05, 0.04, 0.03, 0.02, 0.02)
# A tree pays only where a few more nodes are almost free; else its table is not even kept.
_TREE_PAYS_BELOW = 1.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        widths: nodes per step to choose from, ascending, 1 first; () takes (1, 4, 8, 16) on a CPU
            and (1, 8, 32, 81) elsewhere. Each is a program of its own.
        tree: name of a shipped tree (`configs/trees`) or path of a tree file; its best nodes are
            used.
    """

    widths: tuple[int, ...] = ()
    tree: str = "token_recycling_80"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        static.load(self.tree)
        for width in self.widths:
            checks.integer("widths", width, low=1, high=static.MAX_NODES)
        ascending = sorted(set(self.widths)) == list(self.widths)
        if self.widths and not (ascending and self.widths[0] == 1 and len(self.widths) > 1):
            raise InputError(f"widths={self.widths} must ascend from 1, for example (1, 4, 8).")


class Prices(NamedTuple):
    """Parameters of the drafter.

    Attributes:
        cost: time of a step of each width, in any unit.
        keep_table: whether the recycling table is kept.
    """

    cost: Float[Array, "W"]
    keep_table: Bool[Array, ""]


@pytree
class State:
    """What every row knows.

    Attributes:
        table: token recycling's state.
        right: decayed count of drafted tokens of each kind that were right.
        tried: decayed count of those that were compared.
        sent: this step's draft as if all of it had been sent: the chain's tokens, or the tree's
            first level.
        kind: its kind.
    """

    table: token_recycling.State
    right: Float[Array, "B 6"]
    tried: Float[Array, "B 6"]
    sent: Int[Array, "B M"]
    kind: Int[Array, "B"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter; the engine measures its prices."""
    on_cpu = jax.default_backend() == "cpu"
    widths = config.widths or ((1, 4, 8, 16) if on_cpu else (1, 8, 32, 81))
    tree = _best_nodes(static.load(config.tree), widths[-1] - 1)
    length = min(widths[-1] - 1, 15)
    look = prompt_lookup.Config(num_draft=length, max_ngram=int(_MATCH_STARTS[-1]))
    shapes = _Shapes.of(tree, length, widths)
    size = models.target.config.vocab_size
    num_candidates = min(tree.max_rank + 1, size)

    def init(weights, request, canvas, view, memory):
        del weights, request, view
        batch = canvas.length.shape[0]
        prior = jnp.broadcast_to(_PRIOR * _PRIOR_COUNT, (batch, len(_PRIOR)))
        return State(
            table=token_recycling.init(canvas, memory, size=size, num_candidates=num_candidates),
            right=prior,
            tried=jnp.full_like(prior, _PRIOR_COUNT),
            sent=jnp.zeros((batch, shapes.num_sent), jnp.int32),
            kind=jnp.zeros(batch, jnp.int32),
        )

    def row(tokens, length, followers):
        copied = prompt_lookup.lookup(tokens, length, look)
        below, valid = token_recycling.draft(followers, tokens[length], tree)
        return shapes.join(copied, below, valid)

    def propose(weights, state, request, canvas, view):
        del request, view
        nodes, sent, kind = jax.vmap(row)(canvas.tokens, canvas.length, state.table.followers)
        state = dataclasses.replace(state, sent=sent, kind=kind)
        gain = shapes.gain(state, nodes["valid"])
        width = _choose(gain, canvas.done, weights.drafter, widths)
        # What the draft leaves empty is scored too: a price is the price of the whole width.
        valid = jnp.broadcast_to(jnp.arange(shapes.num_nodes) < width, nodes["valid"].shape)
        proposal = Proposal(
            tokens=nodes["tokens"],
            parent=nodes["parent"],
            depth=nodes["depth"],
            valid=valid,
            max_depth=shapes.max_depth,
            max_children=len(shapes.first_level),
        )
        return proposal, state

    def update(weights, state, request, canvas, proposal, verdict, output):
        right, tried = jax.vmap(_count)(state, verdict)
        keep = weights.drafter.keep_table
        args = (weights, state.table, request, canvas, proposal, verdict, output)
        table = jax.lax.cond(keep, lambda: token_recycling.update(*args), lambda: state.table)
        return dataclasses.replace(state, table=table, right=right, tried=tried)

    def prepare(weights):
        # Until the engine has measured: every further node costs a tenth of a step.
        return price(weights, 1.0 + 0.1 * (np.asarray(widths) - 1))

    return Drafter(
        prepare=prepare,
        init=init,
        propose=propose,
        update=update,
        price=price,
        remember=lambda state: token_recycling.remember(state.table),
        widths=widths,
        max_depth=shapes.max_depth,
    )


def price(weights: Weights, cost: np.ndarray) -> Weights:
    """The weights with the time of a step of every width; an infinite price forbids a width."""
    cheap = cost[1:] <= _TREE_PAYS_BELOW * cost[0]
    prices = Prices(jnp.asarray(cost, jnp.float32), jnp.asarray(bool(cheap.any())))
    return weights._replace(drafter=prices)


def _best_nodes(tree: static.StaticTree, num_draft: int) -> static.StaticTree:
    """The tree's best nodes, best first, so that every prefix is the best tree of its size."""
    return static.optimise({path: _share(path) for path in tree.paths}, num_draft)


def _share(path: tuple[int, ...]) -> float:
    share = [*_RANK_SHARE, *[_RANK_SHARE[-1]] * 64]
    return float(np.prod([share[rank] for rank in path]))


class _Shapes(NamedTuple):
    """What is fixed when the drafter is made: a chain and a tree in the same N nodes."""

    chain_parent: np.ndarray
    chain_depth: np.ndarray
    tree_parent: np.ndarray
    tree_depth: np.ndarray
    tree_worth: np.ndarray  # per width: expected accepted drafts, if the table were always right
    first_level: np.ndarray
    widths: tuple[int, ...]

    @classmethod
    def of(cls, tree: static.StaticTree, length: int, widths: tuple[int, ...]) -> "_Shapes":
        parent, depth = chain.shape(length)
        num_nodes = max(tree.num_nodes, length + 1)
        pad = lambda x: np.pad(x, (0, num_nodes - len(x)))  # noqa: E731
        worth = np.cumsum([0.0, *(_share(path) for path in tree.paths)])
        return cls(
            *map(pad, (parent, depth, tree.parent, tree.depth)),
            tree_worth=worth[np.minimum(np.asarray(widths), tree.num_nodes) - 1],
            first_level=np.flatnonzero(tree.depth == 1),
            widths=widths,
        )

    @property
    def num_nodes(self) -> int:
        return len(self.chain_parent)

    @property
    def num_sent(self) -> int:
        return max(int(self.chain_depth.max()), len(self.first_level))

    @property
    def max_depth(self) -> int:
        return int(max(self.chain_depth.max(), self.tree_depth.max()))

    def join(self, copied, below: Int[Array, "T"], valid: Bool[Array, "T"]):
        """One row's nodes, the tokens to compare later, and the kind of the draft."""
        matched = copied.valid[0]
        fit = lambda x, size: jnp.pad(x, (0, size - x.shape[0]))  # noqa: E731
        pick = lambda a, b: jnp.where(matched, a, b)  # noqa: E731
        chained = jnp.concatenate([below[:1], copied.tokens])
        exists = jnp.concatenate([jnp.ones(1, bool), copied.valid])
        nodes = dict(
            tokens=pick(fit(chained, self.num_nodes), fit(below, self.num_nodes)),
            valid=pick(fit(exists, self.num_nodes), fit(valid, self.num_nodes)),
            parent=pick(self.chain_parent, self.tree_parent),
            depth=pick(self.chain_depth, self.tree_depth),
        )
        chain_sent = jnp.where(copied.valid, copied.tokens, -1)
        tree_sent = jnp.where(valid[self.first_level], below[self.first_level], -1)
        open_ended = lambda x: jnp.pad(  # noqa: E731
            x, (0, self.num_sent - x.shape[0]), constant_values=-1
        )
        kind = jnp.searchsorted(_MATCH_STARTS, copied.matched, side="right").astype(jnp.int32)
        return nodes, pick(open_ended(chain_sent), open_ended(tree_sent)), pick(kind, 0)

    def gain(self, state: State, valid: Bool[Array, "B N"]) -> Float[Array, "B W"]:
        """Draft tokens that each width can be expected to get accepted, per row."""
        rate = jnp.take_along_axis(state.right / state.tried, state.kind[:, None], axis=1)
        drafts = jnp.minimum(np.asarray(self.widths) - 1, valid.sum(-1, keepdims=True) - 1)
        rate = jnp.minimum(rate, 0.999)
        copied = rate * (1 - rate**drafts) / (1 - rate)
        has_tree = valid.sum(-1, keepdims=True) > 1
        return jnp.where(state.kind[:, None] > 0, copied, has_tree * rate * self.tree_worth)


def _choose(
    gain: Float[Array, "B W"], done: Bool[Array, "B"], prices: Prices, widths: tuple[int, ...]
) -> Int[Array, ""]:
    """The width with the most expected tokens of live rows per unit of time."""
    tokens = jnp.sum(jnp.where(done[:, None], 0.0, 1.0 + gain), axis=0)
    return jnp.asarray(widths)[jnp.argmax(tokens / prices.cost)]


def _count(state: State, verdict) -> tuple[Float[Array, "6"], Float[Array, "6"]]:
    """One row's counts after a step: its draft held against the tokens that were emitted."""
    (num_sent,) = state.sent.shape
    known = jnp.pad(verdict.tokens, (0, num_sent), constant_values=-2)[:num_sent]
    exists = (state.sent >= 0) & (jnp.arange(num_sent) <= verdict.num_accepted)
    same = jnp.cumprod((known == state.sent) & exists)
    right, tried = same.sum(), (jnp.concatenate([jnp.ones(1, int), same[:-1]]) * exists).sum()
    # Of the tree's first level one token at most can be right, and it is one try.
    is_tree = state.kind == 0
    hit = ((state.sent == verdict.tokens[0]) & (state.sent >= 0)).any()
    right = jnp.where(is_tree, hit, right).astype(jnp.float32)
    tried = jnp.where(is_tree, (state.sent >= 0).any(), tried).astype(jnp.float32)
    one = (jnp.arange(len(_PRIOR)) == state.kind) & (tried > 0)
    decay = jnp.where(one, _DECAY, 1.0)
    return state.right * decay + one * right, state.tried * decay + one * tried
