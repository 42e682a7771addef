"""What `bench` measures: prompts, lines and laws, in batches that share compiled programs."""

import dataclasses
from collections.abc import Container, Sequence
from typing import NamedTuple

from jaxdecode import engine as engines
from jaxdecode.evals.bench_lines import Line

MIXED = "mixed"
# Gap of scores below which rounding decides; bfloat16 has 16 bits fewer, and logits of about 20.
TIE_GAP = {"float32": 1e-4, "bfloat16": 0.25}


@dataclasses.dataclass(frozen=True)
class Case:
    """One prompt.

    Attributes:
        where: what messages call it.
        category: the row of the table it counts in.
        tokens: its token ids.
        seed: its seed when sampled.
    """

    where: str
    category: str
    tokens: list[int]
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured: every line on every prompt for every batch size and temperature.

    Attributes:
        lines: methods; the baseline is one of them, and so is what their tokens must equal.
        max_new_tokens: bound per prompt.
        batch_sizes: prompts decoded at once.
        temperatures: laws.
        repeats: runs of every line per batch of prompts; times are medians over them.
        ignore_eos: go on after the model's end tokens.
        tie_gap: gap of scores below which a difference is a near tie.
        remember: methods keep what they learned from the earlier prompts of a section.
        timed: False only compares tokens: no warm-up, and times mean nothing.
        baseline: label of the line that speed-ups are over.
        peers: other libraries, timed in turn with the lines.
    """

    lines: tuple[Line, ...]
    max_new_tokens: int
    batch_sizes: tuple[int, ...] = (1,)
    temperatures: tuple[float, ...] = (0.0,)
    repeats: int = 1
    ignore_eos: bool = False
    tie_gap: float = TIE_GAP["float32"]
    remember: bool = False
    timed: bool = True
    baseline: str = "ar"
    peers: tuple[Line, ...] = ()

    @property
    def runners(self) -> tuple[Line, ...]:
        """All that take turns."""
        return (*self.lines, *self.peers)


class Job(NamedTuple):
    """One batch of prompts at one temperature; `index` counts the batches of a section."""

    batch_size: int
    temperature: float
    index: int
    category: str
    prompts: list[int]

    @property
    def key(self) -> tuple[int, float, int]:
        """What identifies it within a plan."""
        return self.batch_size, self.temperature, self.index


def spread(categories: Sequence[str], count: int) -> list[int]:
    """Indices of `count` prompts: as many of each category as can be, evenly spaced in each."""
    groups: dict[str, list[int]] = {}
    for i, category in enumerate(categories):
        groups.setdefault(category, []).append(i)
    members = list(groups.values())
    quotas, left = [0] * len(members), min(count, len(categories))
    if left < len(members):
        for i in range(left):
            quotas[i * len(members) // left] = 1
        left = 0
    while left:
        for g, group in enumerate(members):
            if left and quotas[g] < len(group):
                quotas[g], left = quotas[g] + 1, left - 1
    chosen = [
        group[i * len(group) // quota]
        for group, quota in zip(members, quotas, strict=True)
        for i in range(quota)
    ]
    return sorted(chosen)


def jobs(plan: Plan, cases: Sequence[Case]) -> list[Job]:
    """Everything that is measured, in order. Batches hold one category as far as they can."""
    first = {}
    for case in cases:
        first.setdefault(case.category, len(first))
    order = sorted(range(len(cases)), key=lambda i: first[cases[i].category])
    found = []
    for temperature in plan.temperatures:
        for size in plan.batch_sizes:
            for index, start in enumerate(range(0, len(order), size)):
                members = order[start : start + size]
                kinds = {cases[i].category for i in members}
                category = kinds.pop() if len(kinds) == 1 else MIXED
                found.append(Job(size, temperature, index, category, members))
    return found


def groups(
    plan: Plan, cases: Sequence[Case], finished: Container[tuple[int, float, int]] = ()
) -> list[list[tuple[int, Job]]]:
    """The unfinished jobs, each with its number, in groups that share compiled programs."""
    found: dict[tuple[int, int], list[tuple[int, Job]]] = {}
    for number, job in enumerate(jobs(plan, cases)):
        if job.key not in finished:
            longest = max(len(cases[i].tokens) for i in job.prompts)
            slots = engines.slot_bucket(longest + plan.max_new_tokens + engines.SLACK)
            # What is remembered passes from job to job, in their order.
            shape = (0, 0) if plan.remember else (engines.batch_bucket(len(job.prompts)), slots)
            found.setdefault(shape, []).append((number, job))
    return list(found.values())


def num_ticks(
    plan: Plan, cases: Sequence[Case], finished: Container[tuple[int, float, int]]
) -> int:
    """How often `measure` calls its tick."""
    runs = sum(int(plan.timed) + plan.repeats * len(g) for g in groups(plan, cases, finished))
    return runs * len(plan.runners)
