"""Self-distillation: the target's own answers are what its drafters learn from.

A drafter has to guess what the target says, not what people say, so the texts it learns from are
decoded by the target itself. What is held out goes by the prompt: equal prompts are on one side,
and a prompt stays there in every run, with whatever other prompts and on however many processes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdecode import api, jobs
from jaxdecode.convert.atomic import atomic_file

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


def answered(
    lm: api.LanguageModel,
    prompts: Sequence[Prompt],
    *,
    n: int = 1,
    batch_size: int = api.DEFAULT_BATCH_SIZE,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """The target's answers, as lines that `open_data` reads: n for each prompt, in order.

    Args:
        lm: the target.
        prompts: what it is asked.
        n: answers per prompt.
        batch_size: rows decoded at once.
        progress: as `generate` has it.
        **options: options of `generate`.
    """
    seeds = [prompt.seed for prompt in prompts]
    asked = [prompt.tokens for prompt in prompts]
    shared: dict[str, Any] = {"n": n, "batch_size": batch_size, "progress": progress}
    out = api.generate(lm, asked, seed=seeds, **shared, **options)
    lines = []
    for i, tokens in enumerate(out.tokens):
        prompt = prompts[i // n]
        line = {
            "tokens": [*prompt.tokens.tolist(), *tokens],
            "prompt_length": len(prompt.tokens),
            "category": prompt.category,
            "seed": prompt.seed,
            "finish_reason": out.finish_reasons[i],
        }
        lines.append(line if n == 1 else line | {"sample": i % n})
    return lines


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
