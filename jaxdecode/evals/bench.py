"""Times methods against a baseline on the same prompts, and compares their tokens.

Methods take turns: every batch of prompts runs through all of them before the next one begins, in
an order that rotates, so that all meet the same drift of the machine. Every run is a call of the
public `generate` of its own; only if asked does what a method remembers pass to the next prompts,
and never from one repeat to another.
"""

import collections
import contextlib
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from jaxdecode import api, warm
from jaxdecode import engine as engines
from jaxdecode.core.registry import METHODS
from jaxdecode.evals import ties
from jaxdecode.evals.bench_lines import Line as Line
from jaxdecode.evals.bench_lines import baseline_of as baseline_of
from jaxdecode.evals.bench_lines import check_line
from jaxdecode.evals.bench_lines import parse_lines as parse_lines
from jaxdecode.evals.bench_lines import promised as promised
from jaxdecode.evals.bench_lines import reference as reference
from jaxdecode.evals.bench_plan import MIXED as MIXED
from jaxdecode.evals.bench_plan import TIE_GAP as TIE_GAP
from jaxdecode.evals.bench_plan import Case as Case
from jaxdecode.evals.bench_plan import Job as Job
from jaxdecode.evals.bench_plan import Plan as Plan
from jaxdecode.evals.bench_plan import groups as groups
from jaxdecode.evals.bench_plan import jobs as jobs
from jaxdecode.evals.bench_plan import num_ticks as num_ticks
from jaxdecode.evals.bench_plan import spread as spread
from jaxdecode.evals.peers import Peer

# OTHER: not equal, and nobody promised it.
EQUAL, TIE, DIFFERS, OTHER = "yes", "tie", "no", "other"


class Given(NamedTuple):
    """What methods may need besides the model.

    Attributes:
        draft: draft model; None if there is none.
        heads: trained heads by kind.
        peers: other libraries by the label of their line.
    """

    draft: api.LanguageModel | None = None
    heads: Mapping[str, api.Heads] = MappingProxyType({})
    peers: Mapping[str, Peer] = MappingProxyType({})

    def of(self, line: Line) -> dict[str, Any]:
        """The part that the method of a line takes."""
        entry = METHODS[line.method]
        return {
            "draft": self.draft if "draft" in entry.needs else None,
            "heads": None if entry.heads is None else self.heads[entry.heads],
        }


NOTHING = Given()


class Run(NamedTuple):
    """What one run of one line gave, row by row; what a peer does not tell is None."""

    seconds: float
    tokens: list[list[int]]
    nfe: Sequence[int | None]
    forwarded: Sequence[int | None]
    # How many calls of the model gave how many tokens; keys as text, as JSON has them.
    per_call: Sequence[dict[str, int] | None]


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
            warm.warmup(
                lm,
                method=line.method,
                **given.of(line),
                batch_sizes=(size,),
                requests=sorted(requests),
                **line.options,
            )
        tick()
    for line in plan.peers:
        # Nothing compiles there, but first calls set up threads and buffers.
        for job in group[:1]:
            _run_peer(lm, plan, [cases[i] for i in job.prompts], given.peers[line.label])
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
            runs: dict[str, list[Run]] = {line.label: [] for line in plan.runners}
            with _count_compilations() as compiled:
                for repeat in range(plan.repeats):
                    turn = _rotated(plan.runners, number + repeat)
                    order.append([line.label for line in turn])
                    for line in turn:
                        memory = memories.setdefault((line.label, *job.key[:2], repeat), {})
                        if line in plan.peers:
                            run = _run_peer(lm, plan, batch, given.peers[line.label])
                        else:
                            run = _run(lm, plan, job, batch, line, given, memory)
                        runs[line.label].append(run)
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
) -> Run:
    out = api.generate(
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
    return Run(
        seconds=out.stats[0].seconds,
        tokens=out.tokens,
        nfe=[stats.nfe for stats in out.stats],
        forwarded=[stats.tokens_forwarded for stats in out.stats],
        per_call=[_per_call(steps) for steps in out.steps],
    )


def _per_call(steps: Sequence[int]) -> dict[str, int]:
    tokens_of = collections.Counter(step for step in steps if step >= 0)
    counts = collections.Counter(tokens_of.values())
    return {str(number): counts[number] for number in sorted(counts)}


def _run_peer(lm: api.LanguageModel, plan: Plan, batch: Sequence[Case], peer: Peer) -> Run:
    end_tokens = () if plan.ignore_eos else lm.end_tokens
    prompts = [case.tokens for case in batch]
    tokens, seconds = peer.generate(prompts, plan.max_new_tokens, end_tokens)
    unknown = [None] * len(batch)
    return Run(seconds, tokens, unknown, unknown, unknown)


def _record(
    lm: api.LanguageModel,
    plan: Plan,
    job: Job,
    batch: Sequence[Case],
    runs: dict[str, list[Run]],
) -> dict[str, Any]:
    lines, differences = {}, []
    for line in plan.runners:
        found, rows = runs[line.label], []
        is_peer = line in plan.peers
        checked = is_peer or promised(line.method, job.temperature)
        other = plan.baseline if is_peer else reference(line).label
        expected = runs[other][0].tokens if checked else []
        for b, case in enumerate(batch):
            equal = EQUAL if checked else None
            repeats = [run.tokens[b] for run in found]
            if checked and (worst := _difference(lm, plan, job, case, expected[b], repeats)):
                if is_peer and worst["equal"] == DIFFERS:
                    worst["equal"] = OTHER
                equal = worst["equal"]
                differences.append({"line": line.label, "prompt": job.prompts[b], **worst})
            counts = {
                "tokens": [len(tokens) for tokens in repeats],
                "nfe": [run.nfe[b] for run in found],
                "forwarded": [run.forwarded[b] for run in found],
            }
            rows.append({**counts, "per_call": found[0].per_call[b], "equal": equal})
        lines[line.label] = {"seconds": [run.seconds for run in found], "rows": rows}
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
