"""Sparse trees for every number of guesses: where candidates and probes pay (arXiv:2405.18628).

With s guesses after the pending token, the candidates are the most probable paths of at most s
steps; a path counts with the product of the rates at which guesses of its ranks are right. Probes
are then taken away where their loss is least until the input fits the budget: the last of a
candidate's m probes is worth the chance that the walk ends there times what state m yields more
than state m - 1. How often the states are met is the stationary law of the walk's end, which gives
the expected tokens per step, by which the number of candidates is chosen.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxdecode.trees.probes import Layout
from jaxdecode.trees.static import RankPath


class Plan(NamedTuple):
    """Layouts of states 0, 1, ..., and the expected tokens per step with them."""

    layouts: tuple[Layout, ...]
    rate: float


def falling(depth: int, width: int, first: float = 0.6, fall: float = 0.8) -> np.ndarray:
    """Rates `[depth, width]` at which guesses are right, where none were measured.

    Rank r is right with first x (1 - first)^r at depth 1, and each further place is right less
    often by the factor `fall`.
    """
    rank, place = np.arange(width), np.arange(depth)[:, None]
    return first * (1 - first) ** rank * fall**place


def best(rates: np.ndarray, num_nodes: int) -> Plan:
    """The plan with the most tokens per step of all numbers of candidates.

    Args:
        rates: `[depth, rank]`, how often the guess of this rank is right; there are as many probes
            as depths.
        num_nodes: most nodes of a step: root, candidates and probes.
    """
    plans = [plan(rates, num_nodes, size) for size in range(1, (num_nodes - 2) // 2 + 1)]
    return max(plans, key=lambda plan: plan.rate)


def plan(rates: np.ndarray, num_nodes: int, num_draft: int) -> Plan:
    """The plan with at most `num_draft` candidates in every state."""
    depth = len(rates)
    trees = [candidates(rates[:state], num_draft) for state in range(depth + 1)]
    worth = np.asarray([sum(tree.values()) for tree in trees])
    layouts = []
    for tree in trees:
        ends = stops(tree)
        counts = keep(ends, worth, num_nodes - len(ends))
        layouts.append(Layout(tuple(tree), counts))
    moves = np.zeros((depth + 1, depth + 1))
    for state, (tree, layout) in enumerate(zip(trees, layouts, strict=True)):
        for chance, count in zip(stops(tree), layout.num_probes, strict=True):
            moves[state, count] += chance
    return Plan(tuple(layouts), 1 + float(stationary(moves) @ worth))


def candidates(rates: np.ndarray, num_draft: int) -> dict[RankPath, float]:
    """The likeliest paths, parents first, and the chance that all of a path is right."""
    found: dict[RankPath, float] = {}
    edge: dict[RankPath, float] = {}
    depth, width = rates.shape if len(rates) else (0, 0)

    def offer(path: RankPath, value: float) -> None:
        if len(path) <= depth and path[-1] < width:
            edge[path] = value * float(rates[len(path) - 1, path[-1]])

    offer((0,), 1.0)
    while edge and len(found) < num_draft:
        path = max(edge, key=lambda path: edge[path])
        found[path] = edge.pop(path)
        offer((*path, 0), found[path])
        offer((*path[:-1], path[-1] + 1), found.get(path[:-1], 1.0))
    return found


def stops(tree: dict[RankPath, float]) -> np.ndarray:
    """The chance that the walk ends at the root and at each path."""
    chance = {(): 1.0} | tree
    ends = dict(chance)
    for path in tree:
        ends[path[:-1]] -= chance[path]
    return np.asarray(list(ends.values()))


def keep(ends: np.ndarray, worth: np.ndarray, budget: int) -> tuple[int, ...]:
    """Probes of every candidate: all, less those whose loss is least; each keeps one."""
    most = len(worth) - 1
    counts = [most] * len(ends)
    while sum(counts) > budget and max(counts) > 1:
        loss = [
            chance * (worth[count] - worth[count - 1]) if count > 1 else np.inf
            for chance, count in zip(ends, counts, strict=True)
        ]
        # Of equal losses the later candidate's goes first.
        counts[len(loss) - 1 - int(np.argmin(loss[::-1]))] -= 1
    return tuple(counts)


def stationary(moves: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
    """The law that one step of a chain with these moves leaves as it is."""
    moves = np.asarray(moves, np.float64)
    system = np.vstack([moves.T - np.eye(len(moves)), np.ones(len(moves))])
    wanted = np.zeros(len(moves) + 1)
    wanted[-1] = 1.0
    return np.linalg.lstsq(system, wanted, rcond=None)[0]
