"""What a compiled program moves: HBM bytes with trip counts, collectives, copies.

XLA's own cost analysis counts a loop's body once and VMEM traffic as memory traffic. Here every
instruction counts its operands and results that lie in HBM, times the trips of the loops around it:

  fusion          operands and results; of an operand that is only sliced, the slices; of a result
                  that updates an operand in place, the update
  copy, slice and collective that is started: once, at the start
  all-reduce in a fusion that keeps a slice of it: a reduce-scatter, as TPU writes them
  kernel call     the author's estimate, at most its operands and results
  tuple, bitcast, parameter, the end of what was started: nothing

Tile padding is left out, and of a conditional the branch that moves most is taken.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from jaxdecode.plan.cost import COLLECTIVES, collective_bytes, hbm_bytes, results, scatters
from jaxdecode.plan.hlo import Computation, Instruction, Module

_AXES = re.compile(r"'([^']+)'=(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
        kind: for example "all-reduce"; a fused one of which a slice is kept is "reduce-scatter".
        bytes: of its input or its output, whichever is larger, per device.
        group: devices that take part in one.
        times: how often it runs.
        loops: bodies of the loops it stands in, outermost first.
        source: the operation it was made for, as JAX names it.
    """

    kind: str
    bytes: int
    group: int
    times: int
    loops: tuple[str, ...]
    source: str

    @property
    def wire_bytes(self) -> float:
        """Bytes each device sends in all its runs, with a ring's law."""
        others = (self.group - 1) / self.group
        share = {"all-reduce": 2 * others, "collective-permute": 1.0}.get(self.kind, others)
        return self.bytes * share * self.times


@dataclasses.dataclass(frozen=True)
class Move:
    """HBM bytes of one instruction in all its runs.

    Attributes:
        name: of the instruction.
        opcode: its operation.
        bytes: read and written, all runs together.
        times: how often it runs.
        loops: bodies of the loops it stands in, outermost first.
        source: the operation it was made for, as JAX names it.
    """

    name: str
    opcode: str
    bytes: int
    times: int
    loops: tuple[str, ...]
    source: str


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The account of a program, per device.

    Attributes:
        moves: every instruction that touches HBM, largest first.
        collectives: in program order.
        unknown_loops: bodies of loops whose trips depend on data; counted as one trip.
    """

    moves: tuple[Move, ...]
    collectives: tuple[Collective, ...]
    unknown_loops: tuple[str, ...]

    @property
    def hbm_bytes(self) -> int:
        """Bytes read from and written to HBM."""
        return sum(move.bytes for move in self.moves)

    @property
    def wire_bytes(self) -> float:
        """Bytes a device sends to others."""
        return sum(collective.wire_bytes for collective in self.collectives)

    def step(self) -> "Traffic":
        """One trip of the outermost loop that depends on data; all, if there is none.

        Of a decoding loop that is one step, without what happens once per call.
        """
        if not self.unknown_loops:
            return self
        body = self.unknown_loops[0]
        return Traffic(
            moves=tuple(move for move in self.moves if body in move.loops),
            collectives=tuple(c for c in self.collectives if body in c.loops),
            unknown_loops=self.unknown_loops[1:],
        )


@dataclasses.dataclass(frozen=True)
class _Run:
    """An instruction where it runs."""

    instruction: Instruction
    inside: Computation
    times: int
    loops: tuple[str, ...]
    source: str


def account(module: Module) -> Traffic:
    """Counts what one run of the module moves."""
    unknown: list[str] = []
    runs = list(_runs(module, module.entry, 1, (), unknown))
    moves = [_move(run, hbm_bytes(module, run.instruction, run.inside)) for run in runs]
    collectives = list(_collectives(module, runs))
    outside_fusions = {run.instruction.name for run in runs}
    moves += [
        _move(found, collective_bytes(found.instruction, found.inside))
        for found in collectives
        if found.instruction.name not in outside_fusions
    ]
    return Traffic(
        moves=tuple(sorted((m for m in moves if m.bytes), key=lambda move: -move.bytes)),
        collectives=tuple(map(_collective, collectives)),
        unknown_loops=tuple(dict.fromkeys(unknown)),
    )


def copies(module: Module, dims: Sequence[int]) -> list[str]:
    """Names of the copies and transposes, inside fusions too, that make an array of these sizes."""
    kinds = ("copy", "copy-start", "transpose")
    wanted = tuple(dims)
    return [
        i.name for i in module.instructions() if i.opcode in kinds and i.shape[0].dims == wanted
    ]


def _runs(
    module: Module, name: str, times: int, loops: tuple[str, ...], unknown: list[str]
) -> Iterator[_Run]:
    """Every instruction outside fusions with the number of its runs."""
    inside = module.computations[name]
    for instruction in inside.instructions.values():
        yield _Run(instruction, inside, times, loops, _source(instruction, inside))
        if instruction.opcode == "while":
            body = instruction.computation("body")
            trips = module.trips(instruction, inside)
            if trips is None:
                unknown.append(body)
            inner = times * (1 if trips is None else trips)
            for part in (body, instruction.computation("condition")):
                yield from _runs(module, part, inner, (*loops, body), unknown)
        elif instruction.opcode == "conditional":
            yield from _heaviest(module, instruction, times, loops, unknown)
        elif instruction.opcode in ("call", "async-start"):
            for called in instruction.called:
                yield from _runs(module, called, times, loops, unknown)


def _heaviest(module, instruction, times, loops, unknown) -> list[_Run]:
    """The runs of the branch that moves most."""
    branches = [list(_runs(module, name, times, loops, unknown)) for name in instruction.called]

    def weight(runs: list[_Run]) -> int:
        return sum(hbm_bytes(module, run.instruction, run.inside) * run.times for run in runs)

    return max(branches, key=weight)


def _move(run: _Run, bytes_once: int) -> Move:
    made = run.instruction
    total = bytes_once * run.times
    return Move(made.name, made.opcode, total, run.times, run.loops, run.source)


def _collectives(module: Module, runs: list[_Run]) -> Iterator[_Run]:
    """Every collective where it first stands: TPU repeats one in all fusions it is spread over."""
    seen: set[str] = set()
    for run in runs:
        for found, inside in _inner(module, run.instruction, run.inside):
            channel = found.attribute("channel_id") or found.name
            if found.opcode.removesuffix("-start") in COLLECTIVES and channel not in seen:
                seen.add(channel)
                source = _source(found, inside) or run.source
                yield _Run(found, inside, run.times, run.loops, source)


def _collective(run: _Run) -> Collective:
    found = run.instruction
    inputs = [run.inside.instructions[name].shape for name in found.operands]
    given = sum(array.nbytes for shape in inputs for array in shape)
    made = sum(array.nbytes for array in results(found, inputs))
    return Collective(
        kind="reduce-scatter" if scatters(run.inside) else found.opcode.removesuffix("-start"),
        bytes=max(given, made),
        group=_group(found),
        times=run.times,
        loops=run.loops,
        source=run.source,
    )


def _inner(
    module: Module, instruction: Instruction, inside: Computation
) -> Iterator[tuple[Instruction, Computation]]:
    """The instruction, and those of its computation if it is a fusion."""
    yield instruction, inside
    if instruction.opcode == "fusion":
        body = module.computations[instruction.computation("calls")]
        for part in body.instructions.values():
            yield from _inner(module, part, body)


def _group(collective: Instruction) -> int:
    """Devices of one group, in the three forms XLA writes groups in."""
    text = collective.attributes
    if collective.opcode.startswith("collective-permute"):
        return 2
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[(.*?)\].*?\{([^}]*)\}", text):
        sizes = {axis: int(size) for axis, size in _AXES.findall(named[1])}
        group = 1
        for axis in re.findall(r"'([^']+)'", named[2]):
            group *= sizes.get(axis, 1)
        return group
    return 1


def _source(instruction: Instruction, inside: Computation) -> str:
    """The operation it was made for; what XLA added belongs to the first that reads it."""
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    if found:
        return found[1]
    users = inside.users[instruction.name]
    return _source(users[0], inside) if users else ""
