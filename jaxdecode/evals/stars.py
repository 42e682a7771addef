"""Star graphs: paths whose first edge cannot be told before the rest of them is known.

Some arms of equal length leave a start; the goal is the end of one of them. A problem is a row of
tokens: the edges in random order, two nodes each, start, goal, separator; the answer is the path,
without the start. Node numbers are random. Once a node of the path is known, so is the next one, by
its edge; who writes from left to right can learn all of the answer so but its first node, which has
to be guessed among the arms. From the goal backwards every node follows from the one after it.

    python -m jaxdecode.evals.stars data/stars      # writes what a model is trained on

Source: the task of arXiv:2403.06963, as in arXiv:2505.05755; sizes and encoding ours.
"""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdecode import checks

NUM_NODES = 12
SEPARATOR = NUM_NODES
MASK_TOKEN = SEPARATOR + 1
VOCAB_SIZE = MASK_TOKEN + 1


class Problem(NamedTuple):
    """One graph, and what is asked about it.

    Attributes:
        edges: pairs of nodes, each from the start outwards.
        start: where all arms begin.
        path: the asked arm, from the node after the start to the goal.
    """

    edges: tuple[tuple[int, int], ...]
    start: int
    path: tuple[int, ...]

    @property
    def prompt(self) -> list[int]:
        """The tokens of the problem."""
        return [*itertools.chain(*self.edges), self.start, self.path[-1], SEPARATOR]

    def accepts(self, answer: Sequence[int]) -> bool:
        """Whether an answer is the path."""
        return list(answer) == list(self.path)


def problems(count: int, degree: int = 2, length: int = 5, seed: int = 0) -> Iterator[Problem]:
    """Random problems.

    Args:
        count: how many.
        degree: arms of a star.
        length: edges of an arm.
        seed: of the graphs.

    Raises:
        InputError: a star that has more nodes than there are.
    """
    checks.integer("degree", degree, low=2)
    checks.integer("length", length, low=1, high=(NUM_NODES - 1) // degree)
    rng = np.random.default_rng([seed, degree, length])
    for _ in range(count):
        start, *rest = (int(i) for i in rng.permutation(NUM_NODES)[: 1 + degree * length])
        arms = [(start, *rest[i * length : (i + 1) * length]) for i in range(degree)]
        edges = [edge for arm in arms for edge in itertools.pairwise(arm)]
        yield Problem(tuple(edges[i] for i in rng.permutation(len(edges))), start, arms[0][1:])


def lines(problems: Iterator[Problem]) -> Iterator[str]:
    """Lines of training data."""
    for problem in problems:
        prompt = problem.prompt
        content = {"tokens": [*prompt, *problem.path], "prompt_length": len(prompt)}
        yield json.dumps(content) + "\n"


def write(folder: Path, count: int = 100_000, degree: int = 2, length: int = 5) -> None:
    """Writes the two files that `configs/train/ilm_stars.yaml` names."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, number) in enumerate([("train", count), ("held_out", 500)]):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(lines(problems(number, degree, length, seed)))


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "data/stars"))
