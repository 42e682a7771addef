"""Self-distillation: the target's own answers are what its drafters learn from.

A drafter has to guess what the target says, not what people say, so the texts it learns from are
decoded by the target itself. What is held out goes by the prompt: equal prompts are on one side,
and a prompt stays there in every run, with whatever other prompts and on however many processes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdecode import api, jobs, many
from jaxdecode.convert.atomic import atomic_file
from jaxdecode.language_model import LanguageModel
from jaxdecode.results import Generation

TRAIN, HELD_OUT, SPLIT = "train.jsonl", "held_out.jsonl", "split.json"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is asked.

    Attributes:
        tokens: its token ids.
        seed: of its answers where they are sampled.
        category: what kind of prompt it is.
    """

    tokens: np.ndarray
    seed: int
    category: str


def answers(
    lm: LanguageModel,
    prompts: Mapping[int, Prompt],
    *,
    method: str = "ar",
    n: int = 1,
    batch_size: int = api.DEFAULT_BATCH_SIZE,
    on_fixed: Callable[[str], None] | None = None,
    **options: Any,
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The target's answers as they end, in any order: the prompt's number, and n lines of data.

    Places of finished rows go to prompts that wait: answers differ much in length.

    Args:
        lm: the target.
        prompts: what it is asked, by number.
        method: how it decodes.
        n: answers per prompt.
        batch_size: rows decoded at once.
        on_fixed: told why finished rows have to wait for their batch, if they have to.
        **options: options of `generate`.
    """
    asked = (many.Asked(index, one.tokens, one.seed) for index, one in prompts.items())
    sizes: dict[str, Any] = {"n": n, "batch_size": batch_size, "look_ahead": many.LOOK_AHEAD}
    way = {"refilled": True, "on_fixed": on_fixed or (lambda why: None)}
    found = many.decode(lm, asked, method=method, draft=None, heads=None, **sizes, **way, **options)
    for index, out in found:
        lines = [_line(prompts[index], out, i) for i in range(n)]
        yield index, lines if n == 1 else [x | {"sample": i} for i, x in enumerate(lines)]


def _line(prompt: Prompt, out: Generation, i: int) -> dict[str, Any]:
    """A line that `open_data` reads."""
    return {
        "tokens": [*prompt.tokens.tolist(), *out.tokens[i]],
        "prompt_length": len(prompt.tokens),
        "category": prompt.category,
        "seed": prompt.seed,
        "finish_reason": out.finish_reasons[i],
    }


def is_held_out(prompt: Sequence[int], share: float) -> bool:
    """Whether a prompt is kept from training; one that is stays so when the share grows."""
    spelled = b"".join(int(token).to_bytes(4) for token in prompt)
    drawn = int.from_bytes(hashlib.blake2b(spelled, digest_size=8).digest())
    return drawn < share * 2**64


def split(job: jobs.Job, share: float) -> dict[str, dict[str, int]]:
    """Writes a complete job's answers to `train.jsonl` and `held_out.jsonl`, once.

    Args:
        job: whose results are there.
        share: of the prompts that are held out, about.

    Returns:
        How many answers of each category went to either file.
    """
    done = job.folder / SPLIT
    if not done.exists():
        counts = _write(job, share)
        content = {"held_out": share, "settings": dict(job.settings), "categories": counts}
        # Last: where it is, both files are whole.
        with atomic_file(done) as file:
            file.write(json.dumps(content, indent=1) + "\n")
    return json.loads(done.read_text(encoding="utf-8"))["categories"]


def _write(job: jobs.Job, share: float) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    folder = job.folder
    with (
        jobs.space(job),
        job.results.open(encoding="utf-8") as results,
        atomic_file(folder / TRAIN) as train,
        atomic_file(folder / HELD_OUT) as held_out,
    ):
        for line in results:
            content = json.loads(line)
            kept = is_held_out(content["tokens"][: content["prompt_length"]], share)
            (held_out if kept else train).write(line)
            row = counts.setdefault(content["category"], {"train": 0, "held_out": 0})
            row["held_out" if kept else "train"] += 1
    return counts


def totals(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """The sums of `split`'s counts."""
    rows: Iterable[Mapping[str, int]] = counts.values()
    return {side: sum(row[side] for row in rows) for side in ("train", "held_out")}


def files(folder: Path) -> tuple[Path, Path]:
    """The two files of a folder."""
    return folder / TRAIN, folder / HELD_OUT
