"""Five list tasks that show what filling several slots at once costs: one problem, one answer.

    copy      the list                       one right answer, so slots may be filled at once
    reverse   the list backwards             likewise
    sort      the list in ascending order    likewise
    shuffle   any order of the list          slots depend on each other
    replace   the list with one item, anywhere, replaced by the new one; likewise

A problem is a row of tokens: task, the items, new item, separator; the answer has as many slots as
the list. Items are distinct, and the new one is none of them.

    python -m jaxdecode.evals.lists data/lists      # writes what a model is trained on (--size 6)

Source: the waiting-line tasks of ParallelBench (arXiv:2510.04767); vocabulary and encoding ours.
"""

import argparse
import functools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdecode.errors import InputError

TASKS = ("copy", "reverse", "sort", "shuffle", "replace")
NUM_ITEMS = 16
FIRST_TASK = NUM_ITEMS
SEPARATOR = FIRST_TASK + len(TASKS)
MASK_TOKEN = SEPARATOR + 1
VOCAB_SIZE = MASK_TOKEN + 1
# One item is left to be the new one.
MAX_SIZE = NUM_ITEMS - 1


class Problem(NamedTuple):
    """One list and what is to be done with it.

    Attributes:
        task: one of TASKS.
        items: the list.
        new: the item that `replace` puts in; others are given it too and need not look at it.
    """

    task: str
    items: tuple[int, ...]
    new: int

    @property
    def prompt(self) -> list[int]:
        """The tokens of the problem."""
        return [FIRST_TASK + TASKS.index(self.task), *self.items, self.new, SEPARATOR]

    def accepts(self, answer: Sequence[int]) -> bool:
        """Whether an answer is right."""
        items, answer = list(self.items), list(answer)
        if self.task == "shuffle":
            return sorted(answer) == sorted(items)
        if self.task == "replace":
            changed = [b for a, b in zip(items, answer, strict=True) if a != b]
            return changed == [self.new]
        return answer == list(self.solution())

    def solution(self, rng: np.random.Generator | None = None) -> tuple[int, ...]:
        """A right answer; with `rng` each of them is as likely."""
        rng = rng or np.random.default_rng(0)
        items = list(self.items)
        if self.task == "replace":
            items[int(rng.integers(len(items)))] = self.new
        elif self.task == "shuffle":
            items = [items[i] for i in rng.permutation(len(items))]
        elif self.task != "copy":
            items = sorted(items) if self.task == "sort" else items[::-1]
        return tuple(items)


def problems(task: str, size: int, count: int, seed: int = 0) -> list[Problem]:
    """Random problems of one task.

    Raises:
        InputError: an unknown task, or lists that are too long for the items there are.
    """
    if task not in TASKS:
        raise InputError(f"task {task!r} is not known; use one of {', '.join(TASKS)}.")
    if not 1 <= size <= MAX_SIZE:
        raise InputError(f"lists of {size} items do not exist here; use 1 to {MAX_SIZE}.")
    rng = np.random.default_rng([seed, TASKS.index(task), size])
    return [_drawn(task, size, rng) for _ in range(count)]


def _drawn(task: str, size: int, rng: np.random.Generator) -> Problem:
    *items, new = (int(i) for i in rng.permutation(NUM_ITEMS)[: size + 1])
    return Problem(task, tuple(items), new)


def examples(
    count: int, size: int, seed: int, tasks: Sequence[str] = TASKS
) -> Iterator[dict[str, object]]:
    """Lines of training data: problems of these tasks, each with one of its right answers."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        problem = _drawn(tasks[int(rng.integers(len(tasks)))], size, rng)
        prompt = problem.prompt
        yield {"tokens": [*prompt, *problem.solution(rng)], "prompt_length": len(prompt)}


def write(folder: Path, size: int = 6) -> None:
    """Writes the two files that `configs/train/mdlm_lists.yaml` names, likewise those of shuffles
    alone, and prompts for answers of the model itself.
    """
    alone = folder / "shuffle"
    alone.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate([("train", 100_000), ("held_out", 500)]):
        for place, tasks in ((folder, TASKS), (alone, ("shuffle",))):
            lines = examples(count, size, seed, tasks)
            with (place / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for task in TASKS:
            asked = ({"tokens": p.prompt, "category": task} for p in problems(task, size, 1000, 1))
            file.writelines(json.dumps(line) + "\n" for line in asked)


def ideal_accuracy(task: str, quotas: Sequence[int]) -> float:
    """Share of right answers of a model that knows every slot's law, filling in random order.

    Args:
        task: one of TASKS.
        quotas: slots filled in each step; each is drawn at temperature 1, given the earlier steps.
    """
    quotas = tuple(int(quota) for quota in quotas)
    if task == "shuffle":
        left = [sum(quotas[i:]) for i in range(len(quotas))]
        chances = [math.perm(m, k) / m**k for m, k in zip(left, quotas, strict=True)]
        return math.prod(chances)
    return _replaced(quotas) if task == "replace" else 1.0


@functools.cache
def _replaced(quotas: tuple[int, ...]) -> float:
    """Exactly one slot takes the new item: in this step, or in a later one if none does now."""
    if not quotas:
        return 0.0
    left, now = sum(quotas), quotas[0]
    stays = 1 - 1 / left
    return now / left * stays ** (now - 1) + stays**now * _replaced(quotas[1:])


def main() -> None:
    """Writes training data where it is asked for."""
    parser = argparse.ArgumentParser(description=write.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("data/lists"))
    parser.add_argument("--size", type=int, default=6, help=f"items per list, 1 to {MAX_SIZE}")
    args = parser.parse_args()
    if not 1 <= args.size <= MAX_SIZE:
        parser.error(f"--size {args.size}: lists have 1 to {MAX_SIZE} items here")
    write(args.folder, args.size)


if __name__ == "__main__":
    main()
