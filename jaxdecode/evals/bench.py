"""Times methods against a baseline on the same prompts, and compares their tokens.

Methods take turns: every batch of prompts runs through all of them before the next one begins, in
an order that rotates, so that all meet the same drift of the machine. Every run is a call of the
public `generate` of its own; only if asked does what a method remembers pass to the next prompts,
and never from one repeat to another.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from jaxdecode import api
from jaxdecode import engine as engines
from jaxdecode.core.registry import METHODS
from jaxdecode.evals import ties
from jaxdecode.evals.bench_lines import Line as Line
from jaxdecode.evals.bench_lines import baseline_of as baseline_of
from jaxdecode.evals.bench_lines import check_line
from jaxdecode.evals.bench_lines import parse_lines as parse_lines
from jaxdecode.evals.bench_lines import promised as promised
from jaxdecode.evals.bench_lines import reference as reference
from jaxdecode.results import Generation

MIXED = "mixed"
# Gap of scores below which rounding decides; bfloat16 has 16 bits fewer, and logits of about 20.
TIE_GAP = {"float32": 1e-4, "bfloat16": 0.25}
EQUAL, TIE, DIFFERS = "yes", "tie", "no"


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


class Given(NamedTuple):
    """What methods may need besides the model.

    Attributes:
        draft: draft model; None if there is none.
        heads: trained heads by kind.
    """

    draft: api.LanguageModel | None = None
    heads: Mapping[str, api.Heads] = MappingProxyType({})

    def of(self, line: Line) -> dict[str, Any]:
        """The part that the method of a line takes."""
        entry = METHODS[line.method]
        return {
            "draft": self.draft if "draft" in entry.needs else None,
            "heads": None if entry.heads is None else self.heads[entry.heads],
        }


NOTHING = Given()


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
    return runs * len(plan.lines)


def check(plan: Plan, *, has_draft: bool, heads: Container[str] = (), config: Any = None) -> None:
    """Refuses what cannot run, before a model is loaded.

    Raises:
        InputError: an unknown method or option, a draft model or heads that are missing, or a
            method that cannot run a model of this config.
    """
    for line in plan.lines:
        for temperature in plan.temperatures:
            check_line(line, temperature, has_draft=has_draft, heads=heads, config=config)


def _warm(
    lm: api.LanguageModel,
    plan: Plan,
    cases: Sequence[Case],
    group: Sequence[Job],
    given: Given,
    tick: Callable[[], None],
) -> None:
    """Compiles every program these jobs need."""
    needs: dict[int, set[tuple[int, int]]] = {}
    for job in group:
        longest = max(len(cases[i].tokens) for i in job.prompts)
        size = engines.batch_bucket(len(job.prompts))
        needs.setdefault(size, set()).add((longest, plan.max_new_tokens))
    for line in plan.lines:
        for size, requests in needs.items():
            api.warmup(
                lm,
                method=line.method,
                **given.of(line),
                batch_sizes=(size,),
                requests=sorted(requests),
                **line.options,
            )
        tick()


def measure(
    lm: api.LanguageModel,
    plan: Plan,
    cases: Sequence[Case],
    *,
    given: Given = NOTHING,
    finished: Container[tuple[int, float, int]] = (),
    tick: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """Yields one record (plain data) for each job that is not finished yet.

    A record has the job's fields; per line the seconds of every repeat and, per prompt, new tokens,
    nfe, tokens forwarded and `equal`; the differences found; the number of programs compiled.
    `tick` is called after every run, and after the warm-up of every line.
    """
    memories: dict[tuple[str, int, float, int], dict] = {}
    for index, group in enumerate(groups(plan, cases, finished)):
        if index:
            # A compiled program holds memory maps, of which a process may have 65,530 on Linux:
            # the programs of all methods, batch sizes and lengths together are more.
            jax.clear_caches()
        if plan.timed:
            _warm(lm, plan, cases, [job for _, job in group], given, tick)
        for number, job in group:
            batch = [cases[i] for i in job.prompts]
            order: list[list[str]] = []
            runs: dict[str, list[Generation]] = {line.label: [] for line in plan.lines}
            with _count_compilations() as compiled:
                for repeat in range(plan.repeats):
                    turn = _rotated(plan.lines, number + repeat)
                    order.append([line.label for line in turn])
                    for line in turn:
                        memory = memories.setdefault((line.label, *job.key[:2], repeat), {})
                        runs[line.label].append(_run(lm, plan, job, batch, line, given, memory))
                        tick()
            yield _record(lm, plan, job, batch, runs) | {"order": order, "compiled": len(compiled)}


def _run(
    lm: api.LanguageModel,
    plan: Plan,
    job: Job,
    batch: Sequence[Case],
    line: Line,
    given: Given,
    memory: dict,
) -> Generation:
    return api.generate(
        lm,
        [case.tokens for case in batch],
        method=line.method,
        **given.of(line),
        batch_size=len(batch),
        memory=memory if plan.remember else None,
        max_new_tokens=plan.max_new_tokens,
        temperature=job.temperature,
        seed=[case.seed for case in batch],
        ignore_eos=plan.ignore_eos,
        **line.options,
    )


def _record(
    lm: api.LanguageModel,
    plan: Plan,
    job: Job,
    batch: Sequence[Case],
    runs: dict[str, list[Generation]],
) -> dict[str, Any]:
    lines, differences = {}, []
    for line in plan.lines:
        outs, rows = runs[line.label], []
        checked = promised(line.method, job.temperature)
        expected = runs[reference(line).label][0].tokens if checked else []
        for b, case in enumerate(batch):
            equal = None
            if checked:
                found = _difference(lm, plan, job, case, expected[b], [o.tokens[b] for o in outs])
                equal = found["equal"] if found else EQUAL
                if found:
                    differences.append({"line": line.label, "prompt": job.prompts[b], **found})
            counts = {
                "tokens": [out.stats[b].num_tokens for out in outs],
                "nfe": [out.stats[b].nfe for out in outs],
                "forwarded": [out.stats[b].tokens_forwarded for out in outs],
            }
            rows.append({**counts, "equal": equal})
        lines[line.label] = {"seconds": [out.stats[0].seconds for out in outs], "rows": rows}
    return {**job._asdict(), "lines": lines, "differences": differences}


def _difference(
    lm: api.LanguageModel,
    plan: Plan,
    job: Job,
    case: Case,
    expected: list[int],
    repeats: Sequence[list[int]],
) -> dict[str, Any] | None:
    """The worst difference of any repeat from the expected tokens; None if there is none.

    Where slots are filled in any order no single place decides, so nothing counts as a near tie.
    """
    worst = None
    for got in repeats:
        place = ties.first_difference(expected, got)
        if place is None:
            continue
        gap = math.inf
        if lm.config.denoiser is None:
            law = {"temperature": job.temperature, "seed": case.seed}
            gap = ties.gap(lm, case.tokens, expected, got, **law)
        if worst is None or gap > worst["gap"]:
            kind = TIE if gap < plan.tie_gap else DIFFERS
            worst = {"equal": kind, "place": place, "gap": gap, "expected": expected, "got": got}
    return worst


def _rotated(lines: Sequence[Line], by: int) -> list[Line]:
    first = by % len(lines)
    return [*lines[first:], *lines[:first]]


@contextlib.contextmanager
def _count_compilations() -> Iterator[list[float]]:
    events: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            events.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
