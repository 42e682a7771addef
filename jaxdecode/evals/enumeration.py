"""The exact law of what a verifier emits: the sum over every draft that its drafter can draw.

Target and drafter are Markov tables over a few tokens. A drafter's law is written out as all its
proposals with their probabilities; the verifier says, for each, how likely it ends at which node
with which next token. Nothing is sampled, so a rule that is wrong by one part in a million shows.

    variation(verifier, chains(2, 3))      # largest distance to the target's law, in [0, 1]
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core.protocols import Verifier
from jaxdecode.core.types import Proposal
from jaxdecode.errors import InputError


class Drafts(NamedTuple):
    """Everything a drafter may propose after one pending token.

    Attributes:
        probs: probability of each proposal, float64.
        proposal: the proposals, as the rows of a batch.
    """

    probs: Float[np.ndarray, "M"]
    proposal: Proposal


class Children(NamedTuple):
    """All ordered sets of b children that a node may get, by the node's token.

    Attributes:
        probs: their probabilities.
        tokens: the children's tokens.
        valid: which of them exist.
    """

    probs: Float[np.ndarray, "V T"]
    tokens: Int[np.ndarray, "V T b"]
    valid: Bool[np.ndarray, "V T b"]


# (the drafter's table [V, V], pending token) -> its proposals
Drafter = Callable[[np.ndarray, int], Drafts]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tables:
    """Law of the next token after each token, `[V, V]` float64.

    Attributes:
        target: the target's.
        draft: the drafter's.
        greedy: the target's temperature is 0.
    """

    target: np.ndarray
    draft: np.ndarray
    greedy: bool = False


def tables(num_cases: int, *, vocab_size: int = 4, seed: int = 0) -> Iterator[Tables]:
    """Six awkward cases (equal laws, disjoint ones, zeros, one-hot, greedy), then random ones."""
    rng = np.random.default_rng(seed)
    left = np.arange(vocab_size) < vocab_size // 2
    everything = np.ones(vocab_size)

    def law(keep: np.ndarray, sharpness: float = 0.7) -> np.ndarray:
        found = (rng.dirichlet(np.full(vocab_size, sharpness), vocab_size) + 1e-3) * keep
        return found / found.sum(-1, keepdims=True)

    same = law(everything)
    special = [
        Tables(target=same, draft=same),
        Tables(target=law(left), draft=law(~left)),
        Tables(target=law(left), draft=law(everything)),
        Tables(target=law(everything), draft=law(left)),
        Tables(target=np.eye(vocab_size)[::-1], draft=law(everything)),
        Tables(target=law(everything), draft=law(everything), greedy=True),
    ]
    yield from special[:num_cases]
    for _ in range(num_cases - len(special)):
        yield Tables(target=law(everything), draft=law(everything))


def variation(
    verifier: Verifier, drafter: Drafter, *, num_cases: int = 12, vocab_size: int = 4, seed: int = 0
) -> float:
    """Largest total variation between what is emitted and the target's joint law, over tables."""
    found = 0.0
    for case in tables(num_cases, vocab_size=vocab_size, seed=seed):
        law = emitted(verifier, drafter, case)
        plain = joint(case, 0, law.ndim)
        found = max(found, 0.5 * float(np.abs(law - plain).sum()))
    return found


def emitted(verifier: Verifier, drafter: Drafter, case: Tables, pending: int = 0) -> np.ndarray:
    """Joint law of the first max_depth + 1 tokens after `pending`; later steps are the target's."""
    drafts = drafter(case.draft, pending)
    law = np.zeros((len(case.target),) * (drafts.proposal.max_depth + 1))
    for length, prefix in enumerate(_committed(verifier, drafts, case), start=1):
        for tokens in zip(*np.nonzero(prefix), strict=True):
            law[tokens] += prefix[tokens] * joint(case, tokens[-1], law.ndim - length)
    return law


def num_accepted(verifier: Verifier, drafter: Drafter, case: Tables, pending: int = 0) -> float:
    """Expected number of accepted drafts in one step."""
    committed = _committed(verifier, drafter(case.draft, pending), case)
    return float(sum(length * prefix.sum() for length, prefix in enumerate(committed)))


def joint(case: Tables, token: int, length: int) -> np.ndarray:
    """The target's joint law of the `length` tokens after `token`."""
    target = _sharp(case.target) if case.greedy else case.target
    law = np.ones(())
    for step in range(length):
        law = target[token] if step == 0 else law[..., None] * target
    return law


def chains(num_chains: int, length: int) -> Drafter:
    """Independent chains side by side."""
    return _recorded([num_chains] + [1] * (num_chains * (length - 1)), _independent)


def without_replacement(branching: tuple[int, ...]) -> Drafter:
    """A tree with branching[d] children per node of depth d, drawn one after another."""
    return _recorded(_level_order(branching), _in_order)


def likeliest_and_one(branching: tuple[int, ...]) -> Drafter:
    """The drafter's likeliest tokens and one draw from what is left, at every node."""
    return _recorded(_level_order(branching), _likeliest_and_one)


def likeliest(branching: tuple[int, ...]) -> Drafter:
    """The drafter's likeliest tokens; nothing is drawn."""
    numbers = _level_order(branching)

    def drafts(table: np.ndarray, pending: int) -> Drafts:
        probs, proposal = _grow(table, pending, numbers, _likeliest)
        return Drafts(probs, proposal)

    return drafts


def _recorded(numbers: list[int], children: Callable[[np.ndarray, int], Children]) -> Drafter:
    def drafts(table: np.ndarray, pending: int) -> Drafts:
        probs, proposal = _grow(table, pending, numbers, children)
        law = np.where(proposal.valid[..., None], table[proposal.tokens], 0.0).astype(np.float32)
        return Drafts(probs, dataclasses.replace(proposal, draft_probs=jnp.asarray(law)))

    return drafts


def _grow(
    table: np.ndarray,
    pending: int,
    numbers: list[int],
    children: Callable[[np.ndarray, int], Children],
) -> tuple[np.ndarray, Proposal]:
    """All trees whose node i has numbers[i] children, node by node."""
    probs, tokens = np.ones(1), np.full((1, 1), pending)
    valid = np.ones((1, 1), bool)
    parent, depth = [-1], [0]
    for node, number in enumerate(numbers):
        options = children(table, number)
        at = tokens[:, node]
        num_options = options.probs.shape[1]
        probs = (probs[:, None] * options.probs[at]).reshape(-1)
        exists = options.valid[at] & valid[:, node, None, None]

        def widen(old, new, n=num_options):
            return np.concatenate([np.repeat(old, n, 0), new.reshape(-1, new.shape[-1])], 1)

        tokens, valid = widen(tokens, options.tokens[at]), widen(valid, exists)
        parent += [node] * number
        depth += [depth[node] + 1] * number
    full = tokens.shape
    proposal = Proposal(
        tokens=jnp.asarray(tokens, jnp.int32),
        parent=jnp.broadcast_to(jnp.asarray(parent, jnp.int32), full),
        depth=jnp.broadcast_to(jnp.asarray(depth, jnp.int32), full),
        valid=jnp.asarray(valid),
        max_depth=max(depth),
        max_children=max(numbers),
    )
    return probs, proposal


def _level_order(branching: tuple[int, ...]) -> list[int]:
    """Number of children of each inner node, level by level."""
    numbers, width = [], 1
    for number in branching:
        numbers += [number] * width
        width *= number
    return numbers


def _independent(table: np.ndarray, number: int) -> Children:
    rows = _tuples(len(table), number, repeat=True)
    tokens = np.broadcast_to(rows, (len(table), *rows.shape))
    return Children(table[:, rows].prod(-1), tokens, np.ones_like(tokens, bool))


def _in_order(table: np.ndarray, number: int) -> Children:
    rows = _tuples(len(table), number, repeat=False)
    chance = table[:, rows]
    left = 1.0 - (chance.cumsum(-1) - chance)
    # A law with fewer tokens than children: the rest do not exist, whatever they are called.
    exists = left > 1e-9
    names = len(table) - np.arange(number)
    probs = np.where(exists, chance / np.where(exists, left, 1.0), 1.0 / names).prod(-1)
    return Children(probs, np.broadcast_to(rows, exists.shape), exists)


def _likeliest_and_one(table: np.ndarray, number: int) -> Children:
    size = len(table)
    first = np.argsort(-table, axis=-1, kind="stable")[:, : number - 1]
    rest = table.copy()
    np.put_along_axis(rest, first, 0.0, axis=-1)
    total = rest.sum(-1, keepdims=True)
    probs = np.where(total > 1e-9, rest / np.maximum(total, 1e-9), 1.0 / size)
    drawn = np.broadcast_to(np.arange(size)[None, :, None], (size, size, 1))
    fixed = np.broadcast_to(first[:, None], (size, size, number - 1))
    tokens = np.concatenate([fixed, drawn], -1)
    valid = np.ones_like(tokens, bool)
    valid[..., -1] = total > 1e-9
    valid[..., :-1] = np.take_along_axis(table, first, -1)[:, None] > 0
    return Children(probs, tokens, valid)


def _likeliest(table: np.ndarray, number: int) -> Children:
    tokens = np.argsort(-table, axis=-1, kind="stable")[:, None, :number]
    return Children(np.ones((len(table), 1)), tokens, np.ones_like(tokens, bool))


def _tuples(size: int, number: int, *, repeat: bool) -> np.ndarray:
    if repeat:
        found = itertools.product(range(size), repeat=number)
    else:
        found = itertools.permutations(range(size), number)
    return np.asarray(list(found))


def _sharp(table: np.ndarray) -> np.ndarray:
    return np.eye(len(table))[table.argmax(-1)]


def _committed(verifier: Verifier, drafts: Drafts, case: Tables) -> list[np.ndarray]:
    """Law of the committed tokens, one array per number of tokens."""
    if verifier.outcomes is None:
        raise InputError("this verifier does not say what its outcomes are; nothing to enumerate.")
    proposal, size = drafts.proposal, len(case.target)
    with np.errstate(divide="ignore"):
        scores = np.log(case.target).astype(np.float32)
    chance = _outcomes(scores, case.greedy, proposal, outcomes=verifier.outcomes)
    mass = drafts.probs[:, None, None] * np.asarray(chance, np.float64)
    tokens, parent = np.asarray(proposal.tokens), np.asarray(proposal.parent)[0]
    found = [np.zeros((size,) * (depth + 1)) for depth in range(proposal.max_depth + 1)]
    for node in range(len(parent)):
        path = _path(parent, node)
        last = np.broadcast_to(np.arange(size), mass[:, node].shape)
        index = (*(tokens[:, step, None] for step in path[1:]), last)
        np.add.at(found[len(path) - 1], index, mass[:, node])
    return found


def _path(parent: np.ndarray, node: int) -> list[int]:
    path = [node]
    while parent[path[0]] >= 0:
        path.insert(0, int(parent[path[0]]))
    return path


@functools.partial(jax.jit, static_argnames="outcomes")
def _outcomes(scores: Array, greedy: Array, proposal: Proposal, *, outcomes) -> Array:
    def one(row):
        return outcomes(scores[row.tokens], jnp.asarray(greedy), row, None)

    return jax.vmap(one)(proposal)
