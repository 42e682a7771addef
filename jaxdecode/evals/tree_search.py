"""The best static tree for a method, a model and a machine, from acceptance and cost.

Every path of a wide tree is counted on real prompts; the best tree of n drafts are the n paths that
were accepted most often (`trees.static.optimise`; Medusa's greedy choice, arXiv:2401.10774 section
2.3, with counted paths in place of a product of per-head rates). Of all sizes, the best is the one
with the most tokens per second at the measured time of a step (hardware-aware choice of
arXiv:2405.18628 section 4).
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdecode import api, costs, resolve
from jaxdecode import engine as engines
from jaxdecode.convert.atomic import atomic_file
from jaxdecode.evals.accepted import Accepted
from jaxdecode.options import Options, make_request
from jaxdecode.sampling import noise
from jaxdecode.trees import static

# How much less likely a path is taken to be per step down and per rank, where nothing is known yet.
_DEEPER, _LOWER = 0.55, 1.3
REPEATS = 5


class Candidate(NamedTuple):
    """The best tree of one size.

    Attributes:
        tree: the tree.
        length: tokens per step that the counts predict.
        seconds: measured time of a step; None where it was not measured.
    """

    tree: static.StaticTree
    length: float
    seconds: float | None

    @property
    def rate(self) -> float:
        """Predicted tokens per second of one row; tokens per step where no time is known."""
        return self.length / (self.seconds or 1.0)


def wide(depth: int, num_draft: int, *, max_rank: int = 9) -> static.StaticTree:
    """A tree to count on: many paths of every depth, likelier ones first.

    Args:
        depth: of the deepest path.
        num_draft: paths.
        max_rank: highest rank; published trees have 9.
    """
    weight: dict[static.RankPath, float] = {(): 1.0}
    level: list[static.RankPath] = [()]
    for _ in range(depth):
        below: dict[static.RankPath, float] = {
            (*path, rank): weight[path] * _DEEPER / (rank + 1) ** _LOWER
            for path in level
            for rank in range(max_rank + 1)
        }
        level = sorted(below, key=lambda path: (-below[path], path))[:num_draft]
        weight |= {path: below[path] for path in level}
    best = sorted(weight.keys() - {()}, key=lambda path: (-weight[path], len(path), path))
    return static.from_paths(best[:num_draft])


def step_seconds(
    lm: api.LanguageModel,
    *,
    method: str,
    sizes: Sequence[int],
    heads: Any = None,
    batch_size: int = 1,
    slots: int = 512,
    **options: Any,
) -> dict[int, float]:
    """Seconds per step with the first n drafts of the method's tree, for every n in `sizes`.

    The shortest of several timings that take turns, never falling with size: other programs only
    add time, and more nodes cannot take less.
    """
    ready = []
    for size in sizes:
        _, choice = resolve.split(method, {"num_draft": size, **options})
        ready.append(api._engine(lm, choice, None, heads))
    keys = [noise.row_key(0, [0])] * engines.batch_bucket(batch_size, lm.mesh)
    request = make_request(
        Options(ignore_eos=True), keys, batch=len(keys), tokenizer=None, config=lm.config
    )
    timings = [
        [costs.seconds_per_step(engine, request, slots) for engine in ready]
        for _ in range(REPEATS + 1)
    ]
    shortest = np.maximum.accumulate(np.min(timings[1:], axis=0))
    return dict(zip(sizes, shortest.tolist(), strict=True))


def candidates(
    found: Accepted, sizes: Sequence[int], seconds: Mapping[int, float] | None = None
) -> list[Candidate]:
    """The best tree of every size.

    Args:
        found: what was accepted of a wide tree.
        sizes: drafts per step.
        seconds: measured time of a step of each size.
    """
    made = []
    for size in sizes:
        tree = static.optimise(found.share, size)
        length = 1 + static.expected_length(tree, found.share)
        made.append(Candidate(tree, length, None if seconds is None else seconds[size]))
    return made


def best(made: Sequence[Candidate]) -> Candidate:
    """The candidate with the highest predicted rate; of equal ones the smallest."""
    return max(made, key=lambda candidate: (candidate.rate, -candidate.tree.num_nodes))


def sizes_up_to(num_draft: int) -> list[int]:
    """Sizes worth comparing: about eight per doubling would not be told apart by timing."""
    found, size = [], 1
    while size < num_draft:
        found.append(size)
        size = max(size + 1, math.ceil(size * 1.5))
    return [*found, num_draft]


def save(tree: static.StaticTree, path: Path, notes: Mapping[str, Any]) -> None:
    """Writes a tree file, with where it is from."""
    content = {**notes, "paths": [list(path) for path in tree.paths]}
    with atomic_file(path) as file:
        json.dump(content, file, indent=1)
