"""Static trees that are filled k levels at a time: which nodes each pass of a drafter goes on from.

A pass guesses k tokens behind a node, independently of each other: they fill the k levels below it,
whatever the branch. The next pass goes on from every node k levels down that has children, and
knows the k tokens on the way to it.
"""

import functools
from typing import NamedTuple

import numpy as np

from jaxdecode.trees.static import StaticTree


class Pass(NamedTuple):
    """One pass.

    Attributes:
        starts: nodes it goes on from.
        parent: pass-local number of the start, in the pass before, above each start; empty in the
            first.
        way: the k nodes on the way to each start, itself last; empty in the first.
        sees: which starts of this and all earlier passes but the first are on the way to each
            start of these passes, themselves included.
        nodes: nodes it fills.
        start: number of the start above each of these.
        offset: how many levels below the start's child it is.
    """

    starts: np.ndarray
    parent: np.ndarray
    way: np.ndarray
    sees: np.ndarray
    nodes: np.ndarray
    start: np.ndarray
    offset: np.ndarray


@functools.lru_cache(maxsize=64)
def plan(tree: StaticTree, block: int) -> tuple[Pass, ...]:
    """The passes that fill a tree, `block` levels each."""
    depth, parent = tree.depth.tolist(), tree.parent.tolist()
    inner = sorted(set(parent[1:]))

    def above(node: int, level: int) -> int:
        while depth[node] > level:
            node = parent[node]
        return node

    made: list[Pass] = []
    later: list[int] = []
    for number in range(-(-tree.max_depth // block)):
        level = number * block
        starts = [n for n in inner if depth[n] == level]
        nodes = [n for n, d in enumerate(depth) if level < d <= level + block]
        up, way = [], []
        if number:
            before = made[-1].starts.tolist()
            up = [before.index(above(n, level - block)) for n in starts]
            way = [[above(n, level - block + 1 + j) for j in range(block)] for n in starts]
            later += starts
        sees = [[above(n, depth[m]) == m for m in later] for n in later]
        made.append(
            Pass(
                starts=np.asarray(starts),
                parent=np.asarray(up, int),
                way=np.asarray(way, int).reshape(-1, block),
                sees=np.asarray(sees, bool).reshape(len(later), len(later)),
                nodes=np.asarray(nodes),
                start=np.asarray([starts.index(above(n, level)) for n in nodes]),
                offset=np.asarray([depth[n] - level - 1 for n in nodes]),
            )
        )
    return tuple(made)
