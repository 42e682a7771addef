"""Five tasks on short lists, to see what is lost where several tokens are decided at once.

A prompt is a task, a list of different values, one more value, and a token that ends it; an answer
is a list as long. Copying, reversing and sorting have one right answer each: nothing is lost. A
shuffle is any order of the values, and a replacement puts the extra value in one place of the list,
any: there, tokens decided without a look at each other are wrong with a probability that is known
(arXiv:2510.04767, at toy size).

    python -m jaxdecode.evals.lists data/lists
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

TASKS = ("copy", "reverse", "sort", "shuffle", "replace")
NUM_VALUES = 16
LENGTH = 6
# Values, a token per task, the end of a prompt, and the mask token.
ENDS = NUM_VALUES + len(TASKS)
MASK = ENDS + 1
VOCAB = MASK + 1


def examples(seed: int, num: int) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts with right answers, drawn alike from all of them; the first `num` of a seed."""
    rng = np.random.default_rng(seed)
    for _ in range(num):
        task = int(rng.integers(len(TASKS)))
        *values, extra = rng.permutation(NUM_VALUES)[: LENGTH + 1].tolist()
        yield [NUM_VALUES + task, *values, extra, ENDS], _answer(task, values, extra, rng)


def _answer(task: int, values: list[int], extra: int, rng: np.random.Generator) -> list[int]:
    place = int(rng.integers(LENGTH))
    return {
        "copy": values,
        "reverse": values[::-1],
        "sort": sorted(values),
        "shuffle": rng.permutation(values).tolist(),
        "replace": [*values[:place], extra, *values[place + 1 :]],
    }[TASKS[task]]


def right(prompt: Sequence[int], answer: Sequence[int]) -> bool:
    """Whether an answer is one of the right ones."""
    task, values, extra = TASKS[prompt[0] - NUM_VALUES], list(prompt[1:-2]), prompt[-2]
    given = list(answer)
    if task == "shuffle":
        return sorted(given) == sorted(values)
    if task == "replace":
        changed = [new for old, new in zip(values, given, strict=True) if old != new]
        return changed == [extra]
    return given == {"copy": values, "reverse": values[::-1], "sort": sorted(values)}[task]


def write(path: Path, seed: int, num: int) -> None:
    """Writes examples as lines of training data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for prompt, answer in examples(seed, num):
            line = {"tokens": prompt + answer, "prompt_length": len(prompt)}
            file.write(json.dumps(line) + "\n")


def main(folder: str) -> None:
    """Writes the files that `configs/train/mdlm_lists.yaml` names."""
    write(Path(folder) / "train.jsonl", 0, 100_000)
    write(Path(folder) / "held_out.jsonl", 1, 500)


if __name__ == "__main__":
    main(*sys.argv[1:2] or ("data/lists",))
