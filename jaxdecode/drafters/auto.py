"""Drafts only as much as pays: picks the source and the size of every step's draft by its price.

A draft is the likeliest nodes of two sources together: a chain copied from the row's own text, and
the recycling tree. How often each source was right is counted per row, also when nothing was sent:
the first drafted token can always be held against the token that was emitted. The prices are
measured: the time of a step of every compiled width, for this model, device and batch size. Each
step takes the width with the most expected tokens per second; no draft is one of the widths.

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
from jaxdecode.core.types import pytree
from jaxdecode.drafters import prompt_lookup, token_recycling
from jaxdecode.errors import InputError
from jaxdecode.trees import dynamic, static

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
_CERTAIN = 0.999  # no rate is higher: a chain's later tokens must not look free
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
        copied: the chain as if all of it had been sent; -1 where it has no token.
        kind: the chain's kind; 0 where nothing matched.
        followers: the tree's first level, likewise.
    """

    table: token_recycling.State
    right: Float[Array, "B 6"]
    tried: Float[Array, "B 6"]
    copied: Int[Array, "B M"]
    kind: Int[Array, "B"]
    followers: Int[Array, "B R"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter; the engine measures its prices."""
    on_cpu = jax.default_backend() == "cpu"
    widths = config.widths or ((1, 4, 8, 16) if on_cpu else (1, 8, 32, 81))
    tree = _best_nodes(static.load(config.tree), widths[-1] - 1)
    length = min(widths[-1] - 1, 15)
    look = prompt_lookup.Config(num_draft=length, max_ngram=int(_MATCH_STARTS[-1]))
    first_level = np.flatnonzero(tree.depth == 1)
    max_depth = max(length, tree.max_depth)
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
            copied=jnp.zeros((batch, length), jnp.int32),
            kind=jnp.zeros(batch, jnp.int32),
            followers=jnp.zeros((batch, len(first_level)), jnp.int32),
        )

    def row(state, tokens, length):
        copied = prompt_lookup.lookup(tokens, length, look)
        below, valid = token_recycling.draft(state.table.followers, tokens[length], tree)
        kind = jnp.searchsorted(_MATCH_STARTS, copied.matched, side="right").astype(jnp.int32)
        rate = jnp.minimum(state.right / state.tried, _CERTAIN)
        candidates = join(tree, below, valid, rate[0], copied, rate[kind])
        chosen = dynamic.select(candidates, tokens[length], widths[-1] - 1)
        state = dataclasses.replace(
            state,
            copied=jnp.where(copied.valid, copied.tokens, -1),
            kind=jnp.where(copied.valid[0], kind, 0),
            followers=jnp.where(valid[first_level], below[first_level], -1),
        )
        # Draft tokens that each number of nodes can be expected to get accepted.
        return chosen, jnp.cumsum(jnp.exp(chosen.scores).at[0].set(0.0)), state

    def propose(weights, state, request, canvas, view):
        del request, view
        chosen, gain, state = jax.vmap(row)(state, canvas.tokens, canvas.length)
        gain = gain[:, np.asarray(widths) - 1]
        width = _choose(gain, canvas.done, weights.drafter, widths)
        # What the draft leaves empty is scored too: a price is the price of the whole width.
        valid = jnp.broadcast_to(jnp.arange(widths[-1]) < width, chosen.valid.shape)
        sent = dataclasses.replace(chosen, valid=valid)
        bounds = dict(max_depth=max_depth, max_children=tree.max_children + 1)
        return dynamic.proposal(sent, **bounds), state

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
        max_depth=max_depth,
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


def join(
    tree: static.StaticTree,
    below: Int[Array, "T"],
    valid: Bool[Array, "T"],
    tree_rate: Float[Array, ""],
    copied: prompt_lookup.Draft,
    copy_rate: Float[Array, ""],
) -> dynamic.Candidates:
    """Both sources as one tree of candidates, the chain first.

    Args:
        tree: shape of the recycling tree.
        below: its tokens, the root's included.
        valid: which of them exist.
        tree_rate: how often the next token is among the followers of a token.
        copied: the chain.
        copy_rate: how often a copied token is right where those before it are.
    """
    num_copied = copied.tokens.shape[0]
    share = np.asarray([0.0, *(np.log(_share(path)) for path in tree.paths)], np.float32)
    scores = jnp.where(valid, share + tree.depth * jnp.log(tree_rate), -jnp.inf)
    chain_depth = np.arange(1, num_copied + 1, dtype=np.int32)
    chain_scores = jnp.where(copied.valid, chain_depth * jnp.log(copy_rate), -jnp.inf)
    # Nodes of the tree that say what the chain says are the chain's; their children move there.
    same = jnp.zeros(tree.num_nodes, bool).at[0].set(True)
    for depth, nodes in enumerate(tree.levels()[:num_copied], 1):
        agrees = valid[nodes] & copied.valid[depth - 1] & (below[nodes] == copied.tokens[depth - 1])
        same = same.at[nodes].set(same[tree.parent[nodes]] & agrees)
        best = jnp.max(jnp.where(same[nodes], scores[nodes], -jnp.inf))
        chain_scores = chain_scores.at[depth - 1].max(best)
    above = tree.parent[1:]
    moved = jnp.where(same[above], tree.depth[above] - 1, num_copied + above - 1)
    return dynamic.Candidates(
        tokens=jnp.concatenate([copied.tokens, below[1:]]),
        scores=jnp.concatenate([chain_scores, jnp.where(same, -jnp.inf, scores)[1:]]),
        parent=jnp.concatenate([chain_depth - 2, jnp.where(above == 0, -1, moved)]),
        depth=jnp.concatenate([chain_depth, tree.depth[1:]]),
    )


def _choose(
    gain: Float[Array, "B W"], done: Bool[Array, "B"], prices: Prices, widths: tuple[int, ...]
) -> Int[Array, ""]:
    """The width with the most expected tokens of live rows per unit of time."""
    tokens = jnp.sum(jnp.where(done[:, None], 0.0, 1.0 + gain), axis=0)
    return jnp.asarray(widths)[jnp.argmax(tokens / prices.cost)]


def _count(state: State, verdict) -> tuple[Float[Array, "6"], Float[Array, "6"]]:
    """One row's counts after a step: its drafts held against the tokens that were emitted."""
    (length,) = state.copied.shape
    known = jnp.pad(verdict.tokens, (0, length), constant_values=-2)[:length]
    exists = (state.copied >= 0) & (jnp.arange(length) <= verdict.num_accepted)
    same = jnp.cumprod((known == state.copied) & exists)
    compared = jnp.concatenate([jnp.ones(1, int), same[:-1]]) * exists
    # Of the tree's first level one token at most can be right, and it is one try.
    found = (state.followers >= 0) & (state.followers == verdict.tokens[0])
    kinds = jnp.arange(len(_PRIOR))
    chain = (kinds == state.kind) & (kinds > 0)
    right = jnp.where(chain, same.sum(), jnp.where(kinds == 0, found.any(), 0))
    tried = jnp.where(chain, compared.sum(), jnp.where(kinds == 0, (state.followers >= 0).any(), 0))
    decay = jnp.where(tried > 0, _DECAY, 1.0)
    return state.right * decay + right, state.tried * decay + tried
