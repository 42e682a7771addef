"""A plan: does it fit, what does a step cost against its floor, how many nodes are worth it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxdecode.core.protocols import Cache
from jaxdecode.dist import mesh as meshes
from jaxdecode.plan import programs
from jaxdecode.plan.curve import Curve, interpolate
from jaxdecode.plan.floor import Bound, Work, floor
from jaxdecode.plan.hardware import Chip, Topology
from jaxdecode.plan.programs import Program
from jaxdecode.plan.setup import Setup, cache, params, shard_bytes

# Numbers of nodes whose cost a plan lists.
LADDER = (1, 2, 4, 8, 16, 32, 64, 128)
# A compilation keeps one core busy, and tracing another one.
_WORKERS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes per device.

    Attributes:
        weights: parameters.
        cache: keys and values.
        other: canvas and other arguments, results, and code.
        temporaries: most that any program needs beside them; None where nothing was compiled.
        needed: all together.
        available: what a program can use.
    """

    weights: int
    cache: int
    other: int
    temporaries: int | None
    needed: int
    available: int

    @property
    def missing(self) -> int:
        """By how much it does not fit; 0 if it does."""
        return max(self.needed - self.available, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
    """The cost of a step that scores so many nodes per row.

    Attributes:
        nodes: of the proposal, the pending token included; 1 is plain decoding.
        compiled: whether hbm_bytes are of a compiled program, or between those of two.
        hbm_bytes: per device and step.
        floor_bytes: the least it could be.
        milliseconds: roofline of the compiled bytes: nothing is faster.
        bound: the resource that takes so long.
        cost: milliseconds over those of plain decoding.
        tokens: per step and row, by the acceptance curve.
        tokens_per_second: of the whole batch, at most.
    """

    nodes: int
    compiled: bool
    hbm_bytes: float
    floor_bytes: float
    milliseconds: float
    bound: Bound
    cost: float
    tokens: float
    tokens_per_second: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """The cost of a step that takes in so many rows, of a method that fills slots.

    Attributes:
        rows: slots of each text that go in.
        cached: slots whose keys and values are read in place of going in.
        scored: slots that the head scores.
        hbm_bytes: per device and step, of the compiled program; None if unreadable.
        floor_bytes: the least it could be.
        milliseconds: roofline of the compiled bytes: nothing is faster. Of the floor, if there
            are none.
        bound: the resource that takes so long.
    """

    rows: int
    cached: int
    scored: int
    hbm_bytes: float | None
    floor_bytes: float
    milliseconds: float
    bound: Bound


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """One compiled program.

    Attributes:
        name: of the program.
        seconds: that compiling took, tracing included.
        hbm_bytes: per device and step, or per run of a prefill chunk; None if unreadable.
        floor_bytes: the least; None for prefill.
        call_bytes: moved once per call of the loop, beside its steps.
        aliased: bytes updated in place.
        collectives: of one step: kind, bytes, devices in a group, times, and where.
        largest: the instructions that move most.
    """

    name: str
    seconds: float
    hbm_bytes: float | None
    floor_bytes: float | None
    call_bytes: float | None
    aliased: int
    collectives: tuple[dict[str, Any], ...]
    largest: tuple[dict[str, Any], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a configuration takes.

    Attributes:
        mesh: its axes as text.
        batch: rows of the whole batch.
        context: tokens of a row.
        slots: slots of the cache that hold them.
        kv_copies: how often each KV head is repeated.
        cache_dtype: of keys and values.
        attention: who computes it: "xla" or a kernel.
        memory: bytes per device.
        failure: why a program could not be compiled; None if all were.
        ladder: costs by number of nodes; empty if it does not fit, or slots are filled.
        passes: costs by rows that go in, of methods that fill slots.
        programs: what was compiled.
        recommended: nodes with most tokens per second; None if it does not fit, or slots are
            filled.
        curve: where the acceptance curve is from; None where no drafts are accepted.
    """

    mesh: str
    batch: int
    context: int
    slots: int
    kv_copies: int
    cache_dtype: str
    attention: str
    memory: Memory
    failure: str | None
    ladder: tuple[Rung, ...]
    programs: tuple[Compiled, ...]
    recommended: int | None
    curve: str | None
    passes: tuple[Pass, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every program runs in the memory there is."""
        return self.failure is None and not self.memory.missing


def make(
    made: Setup,
    topology: Topology,
    *,
    curve: Curve,
    nodes: Sequence[int],
    method: tuple[str, Mapping[str, Any]] | None = None,
    with_prefill: bool = True,
    tick: Callable[[], None] = lambda: None,
) -> Plan:
    """Compiles the programs of a setup and accounts for them.

    Args:
        made: the model on its mesh.
        topology: the devices.
        curve: tokens per call by number of nodes.
        nodes: numbers of nodes to compile; 1 is always compiled, others are interpolated.
        method: a method and its options, whose whole step is compiled too, drafter included.
        with_prefill: whether prefill is compiled.
        tick: called after every compilation, `num_programs` times.
    """
    wanted = sorted({1, *nodes})
    jobs = [functools.partial(programs.compile_step, made, n) for n in wanted]
    if with_prefill:
        jobs.append(functools.partial(programs.compile_prefill, made))
    if method is not None:
        jobs.append(functools.partial(programs.compile_method, made, *method))
    found, memory, failure = compile_all(made, topology.chip, jobs, tick)
    steps = dict(zip(wanted, found, strict=False))
    ladder = () if memory.missing or failure else _ladder(made, topology.chip, steps, curve)
    best = max(ladder, key=lambda rung: rung.tokens_per_second).nodes if ladder else None
    floors = {step.name: floor(made, nodes).hbm_bytes for nodes, step in steps.items()}
    return Plan(
        **setting(made),
        memory=memory,
        failure=failure,
        ladder=ladder,
        programs=tuple(listed(program, floors.get(program.name)) for program in found),
        recommended=best,
        curve=curve.source,
    )


def setting(made: Setup) -> dict[str, Any]:
    """What a plan says of its setup."""
    return {
        "mesh": meshes.describe(dict(made.mesh.shape)),
        "batch": made.batch,
        "context": made.context,
        "slots": made.slots,
        "kv_copies": made.kv_copies,
        "cache_dtype": made.kv_dtype.name,
        "attention": made.backend.impl,
    }


def compile_all(
    made: Setup,
    chip: Chip,
    jobs: Sequence[Callable[[], Program]],
    tick: Callable[[], None],
    kept: Cache | None = None,
) -> tuple[list[Program], Memory, str | None]:
    """The programs, the memory they need, and why they could not be compiled."""
    memory = arguments(made, chip, kept)
    if memory.missing:
        return [], memory, None
    try:
        found = _together(jobs, tick)
    except programs.OutOfMemory as error:
        return [], memory, str(error)
    return found, _measured(memory, found), None


def num_programs(nodes: Sequence[int], *, whole: bool = False, with_prefill: bool = True) -> int:
    """Compilations of `make`."""
    return len({1, *nodes}) + with_prefill + whole


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan for JSON."""
    memory = dataclasses.asdict(plan.memory) | {"missing": plan.memory.missing}
    return {"fits": plan.fits} | dataclasses.asdict(plan) | {"memory": memory}


def _together(jobs: Sequence[Callable[[], Program]], tick: Callable[[], None]) -> list[Program]:
    """Runs the jobs on a few threads, in order; the first that fails ends them all."""

    def run(job: Callable[[], Program]) -> Program:
        made = job()
        tick()
        return made

    pool = ThreadPoolExecutor(max_workers=_WORKERS)
    try:
        return list(pool.map(run, jobs))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def arguments(made: Setup, chip: Chip, kept: Cache | None = None) -> Memory:
    """Memory before anything is compiled: what must fit in any case; `kept` as for `cache`."""
    weights = shard_bytes(params(made))
    rows = shard_bytes(cache(made, kept))
    return Memory(
        weights=weights,
        cache=rows,
        other=0,
        temporaries=None,
        needed=weights + rows,
        available=chip.hbm_bytes,
    )


def _measured(known: Memory, found: Sequence[Program]) -> Memory:
    largest = max(found, key=lambda program: program.peak)
    return dataclasses.replace(
        known,
        temporaries=largest.temporaries,
        other=max(largest.peak - largest.temporaries - known.needed, 0),
        needed=largest.peak,
    )


def _ladder(made: Setup, chip: Chip, steps: dict[int, Program], curve: Curve) -> tuple[Rung, ...]:
    """Costs of all rungs; between compiled ones, what exceeds the floor lies on straight lines."""
    read = {n: step.traffic.step() for n, step in steps.items() if step.traffic is not None}
    if not read:
        return ()
    ratios = tuple(
        (n, traffic.hbm_bytes / floor(made, n).hbm_bytes) for n, traffic in sorted(read.items())
    )
    sent = tuple((n, traffic.wire_bytes) for n, traffic in sorted(read.items()))
    rungs: list[Rung] = []
    for nodes in sorted(n for n in {*LADDER, *read} if n <= max(read)):
        least = floor(made, nodes)
        over = interpolate(ratios, nodes)
        work = Work(over * least.hbm_bytes, least.flops, interpolate(sent, nodes))
        bound, seconds = work.bound(chip)
        tokens = curve.tokens(nodes)
        first = rungs[0].milliseconds if rungs else seconds * 1e3
        rungs.append(
            Rung(
                nodes=nodes,
                compiled=nodes in read,
                hbm_bytes=work.hbm_bytes,
                floor_bytes=least.hbm_bytes,
                milliseconds=seconds * 1e3,
                bound=bound,
                cost=seconds * 1e3 / first,
                tokens=tokens,
                tokens_per_second=made.batch * tokens / seconds,
            )
        )
    return tuple(rungs)


def listed(program: Program, floor_bytes: float | None) -> Compiled:
    """What a plan lists of a program; with the least bytes of one step, where known."""
    if program.traffic is None:
        moved = call = None
        collectives, largest = (), ()
    else:
        step = program.traffic.step()
        moved = float(step.hbm_bytes)
        call = float(program.traffic.hbm_bytes - step.hbm_bytes)
        collectives = tuple(
            {
                "kind": c.kind,
                "bytes": c.bytes,
                "group": c.group,
                "times": c.times,
                "loop": c.loops[-1] if c.loops else "",
                "source": c.source,
            }
            for c in step.collectives
        )
        largest = tuple(dataclasses.asdict(move) for move in step.moves[:5])
    return Compiled(
        name=program.name,
        seconds=round(program.seconds, 2),
        hbm_bytes=moved,
        floor_bytes=floor_bytes,
        call_bytes=call,
        aliased=program.aliased,
        collectives=collectives,
        largest=largest,
    )
