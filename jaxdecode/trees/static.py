"""Static trees: the shape of a proposal as data, one list of child ranks per node.

A path [0, 2] is the third child of the root's first child; the root itself is the empty path. The
order of the paths is the order of the nodes, so a parent stands before its children and every
prefix of the list is a tree of its own. Shipped trees lie in `configs/trees`, each with its source;
users may give the path of a file of the same form.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdecode import checks
from jaxdecode.errors import InputError, UnknownNameError, near_matches
from jaxdecode.paths import config_dir

MAX_NODES = 1024
MAX_DEPTH = 64
RankPath = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class StaticTree:
    """A tree of fixed shape; hashable. Node 0 is the root, node i + 1 has the i-th path.

    Attributes:
        paths: child ranks from the root, for every node but the root.
    """

    paths: tuple[RankPath, ...]

    @functools.cached_property
    def parent(self) -> np.ndarray:
        """Index of each node's parent; -1 at the root."""
        index = {path: node for node, path in enumerate(self._all)}
        return np.asarray([-1, *(index[path[:-1]] for path in self.paths)], np.int32)

    @functools.cached_property
    def depth(self) -> np.ndarray:
        """Number of steps from the root."""
        return np.asarray([len(path) for path in self._all], np.int32)

    @functools.cached_property
    def rank(self) -> np.ndarray:
        """Rank of each node among the children of its parent; 0 at the root."""
        return np.asarray([0, *(path[-1] for path in self.paths)], np.int32)

    @property
    def num_nodes(self) -> int:
        """Nodes, the root included."""
        return len(self.paths) + 1

    @property
    def max_depth(self) -> int:
        """Length of the longest path."""
        return int(self.depth.max())

    @property
    def max_children(self) -> int:
        """Most children of one node."""
        return int(np.bincount(self.parent[1:]).max())

    @property
    def max_rank(self) -> int:
        """Highest rank."""
        return int(self.rank.max())

    def is_gapless(self) -> bool:
        """Whether siblings have the ranks 0, 1, 2, ... in this order."""
        earlier = [
            np.sum(self.parent[:node] == self.parent[node]) for node in range(self.num_nodes)
        ]
        return bool(np.array_equal(earlier, self.rank))

    def levels(self) -> list[np.ndarray]:
        """Node indices of depth 1, 2, ..."""
        return [np.flatnonzero(self.depth == depth) for depth in range(1, self.max_depth + 1)]

    def first(self, num_draft: int) -> "StaticTree":
        """The tree of the first `num_draft` paths."""
        return StaticTree(self.paths[:num_draft])

    def up_to(self, depth: int) -> "StaticTree":
        """The tree of the paths of at most `depth` steps."""
        return StaticTree(tuple(path for path in self.paths if len(path) <= depth))

    @property
    def _all(self) -> tuple[RankPath, ...]:
        return ((), *self.paths)


def names() -> list[str]:
    """Shipped trees, sorted."""
    return sorted(path.stem for path in _folder().glob("*.json"))


@functools.lru_cache(maxsize=64)
def load(name_or_path: str) -> StaticTree:
    """The tree of a shipped name, or of a JSON file with the key "paths".

    Raises:
        UnknownNameError: no such name; near matches are listed.
        InputError: not JSON of this form, or not a tree in draft order.
    """
    file = _folder() / f"{name_or_path}.json"
    if name_or_path not in names():
        file = Path(name_or_path)
        if file.suffix != ".json" and not file.is_file():
            raise UnknownNameError(
                f"tree {name_or_path!r} is not known.{near_matches(name_or_path, names())} "
                f"Known: {', '.join(names())}; or give the path of a .json file."
            )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"tree file {file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"tree file {file} is not JSON: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("paths"), list):
        raise InputError(f'tree file {file} must be an object with "paths": a list of rank paths.')
    return from_paths(content["paths"], where=f"tree file {file}")


def check_part(name_or_path: str, num_draft: int | None) -> None:
    """Refuses a tree that cannot be loaded, and a number of drafts that is more than it has."""
    tree = load(name_or_path)
    if num_draft is not None:
        checks.integer("num_draft", num_draft, low=1, high=len(tree.paths))


def from_paths(paths: Sequence[Sequence[int]], *, where: str = "tree") -> StaticTree:
    """The tree with these rank paths, checked.

    Args:
        paths: child ranks from the root, parents before their children.
        where: what errors call it.
    """
    if not 1 <= len(paths) < MAX_NODES:
        raise InputError(
            f"{where} has {len(paths)} paths; it must have 1 to {MAX_NODES - 1} (and the root)."
        )
    seen: dict[RankPath, int] = {(): 0}
    for number, path in enumerate(paths, start=1):
        here = f"{where}: path {number}, {path!r},"
        if not isinstance(path, list | tuple) or not path:
            raise InputError(f"{here} must be a list of at least one rank.")
        if not all(isinstance(rank, int) and not isinstance(rank, bool) for rank in path):
            raise InputError(f"{here} must hold whole numbers only.")
        if min(path) < 0:
            raise InputError(f"{here} has a negative rank; ranks count from 0.")
        if len(path) > MAX_DEPTH:
            raise InputError(f"{here} has depth {len(path)}; at most {MAX_DEPTH} is possible.")
        key = tuple(path)
        if key in seen:
            raise InputError(f"{here} repeats path {seen[key]}; leave one out.")
        if key[:-1] not in seen:
            known = {tuple(other) for other in paths if isinstance(other, list | tuple)}
            late = key[:-1] in known
            fault = "stands before its parent" if late else "has no parent"
            way_out = "move it behind" if late else "add"
            raise InputError(f"{here} {fault}; {way_out} {list(key[:-1])}.")
        seen[key] = number
    return StaticTree(tuple(tuple(path) for path in paths))


def chain(length: int) -> StaticTree:
    """The tree in which every node has one child."""
    return StaticTree(tuple((0,) * depth for depth in range(1, length + 1)))


def optimise(frequency: Mapping[RankPath, float], num_draft: int) -> StaticTree:
    """The tree of `num_draft` drafts with the highest expected accepted length.

    A node counts with the frequency with which its whole path was accepted, measured on a wider
    tree: the expected accepted length is the sum over the nodes (arXiv:2506.04708 calls this the
    data-driven tree). No path is accepted more often than its parent's, so the most frequent nodes
    are closed under parents. Nodes come in order of frequency: prefixes are the best smaller trees.

    Args:
        frequency: accepted share of each path; a child's must not exceed its parent's.
        num_draft: drafts wanted; fewer come back if there are fewer paths.
    """
    checks.integer("num_draft", num_draft, low=1, high=MAX_NODES - 1)
    for path, share in frequency.items():
        above = frequency.get(path[:-1], 1.0 if len(path) == 1 else None)
        if above is None or share > above:
            raise InputError(
                f"path {list(path)} was accepted more often than its parent ({share} > {above}); "
                "count how often whole paths were accepted."
            )
    best = sorted(frequency, key=lambda path: (-frequency[path], len(path), path))
    return from_paths(best[:num_draft])


def expected_length(tree: StaticTree, frequency: Mapping[RankPath, float]) -> float:
    """Expected accepted drafts per step; paths that were never seen count nothing."""
    return float(sum(frequency.get(path, 0.0) for path in tree.paths))


def proposal_arrays(tree: StaticTree, batch: int) -> dict[str, Any]:
    """The fields of a proposal that only depend on the tree."""
    full = (batch, tree.num_nodes)
    return dict(
        parent=np.broadcast_to(tree.parent, full),
        depth=np.broadcast_to(tree.depth, full),
        max_depth=tree.max_depth,
        max_children=tree.max_children,
    )


def _folder() -> Path:
    return config_dir() / "trees"
