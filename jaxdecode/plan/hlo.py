"""Reads the text of an optimized XLA program: instructions, memory spaces, loops, aliases.

Only what is needed to account for a program is kept. The text is what `Compiled.as_text()` gives
for TPU and GPU; names are unique in it, so operands are found by name.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# The default memory space of a layout; on TPU, S(1) is VMEM and others are smaller still.
HBM = 0

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<= ]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_COMMENT = re.compile(r"/\*.*?\*/")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|\w+_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Array:
    """One buffer of a shape.

    Attributes:
        dtype: as XLA writes it, for example "bf16".
        dims: sizes.
        space: memory space; HBM is 0.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, padding of tiles left out."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            # f8e4m3fn, bf16, s4, u32: the first number in the name is the width.
            bits = int(re.findall(r"\d+", self.dtype)[0])
        return -(-math.prod(self.dims) * bits // 8)

    @property
    def hbm_bytes(self) -> int:
        """Bytes if it lies in HBM, else 0."""
        return self.nbytes if self.space == HBM else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in the module.
        opcode: for example "fusion"; started operations keep their "-start".
        shape: the arrays it makes; those of nested tuples in order.
        operands: names of its inputs.
        literal: what stands between its parentheses.
        attributes: the rest of the line.
        is_root: whether it is its computation's result.
    """

    name: str
    opcode: str
    shape: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    @property
    def index(self) -> int:
        """Number of a parameter, or position that a get-tuple-element takes."""
        if self.opcode == "parameter":
            return int(self.literal)
        return int(self.attribute("index") or 0)

    def attribute(self, name: str) -> str | None:
        """Value of `name=value` up to the next comma or brace."""
        found = re.search(rf"\b{name}=([^,{{}} ]+)", self.attributes)
        return found[1] if found else None

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Computations it names."""
        branches = _BRANCHES.search(self.attributes)
        names = _NAME.findall(branches[1]) if branches else []
        return (*_CALLED.findall(self.attributes), *names)

    def computation(self, role: str) -> str:
        """Name of the computation in the role "body", "condition" or "calls"."""
        return (self.attribute(role) or "").lstrip("%")


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions.

    Attributes:
        name: unique in the module.
        instructions: by name, in order of the text.
    """

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose value is the result."""
        return next(i for i in self.instructions.values() if i.is_root)

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """Its parameters by number."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: i.index)

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each name."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                found[operand].append(instruction)
        return found


@dataclasses.dataclass(frozen=True)
class Module:
    """A parsed program.

    Attributes:
        computations: by name.
        entry: name of the one that is run.
    """

    computations: dict[str, Computation]
    entry: str

    def instructions(self) -> Iterator[Instruction]:
        """All instructions of all computations."""
        for computation in self.computations.values():
            yield from computation.instructions.values()

    def trips(self, loop: Instruction, inside: Computation) -> int | None:
        """How often a while loop runs: what XLA noted, or the bound its condition compares with.

        None if neither says: the loop depends on data. A bound is taken to be reached in steps
        of one, as `lax.scan` and `fori_loop` do.
        """
        noted = _TRIPS.search(loop.attributes)
        if noted:
            return int(noted[1])
        condition = self.computations[loop.computation("condition")]
        compare = condition.root
        if compare.opcode == "fusion":
            inner = self.computations[compare.computation("calls")].root
            outer = [
                condition.instructions[compare.operands[p.index]]
                for p in self.computations[compare.computation("calls")].parameters
            ]
            sides = [self._outside(name, compare, outer) for name in inner.operands]
            compare = inner
        else:
            sides = [condition.instructions[name] for name in compare.operands]
        if compare.opcode != "compare" or compare.attribute("direction") != "LT":
            return None
        counter, bound = sides
        if bound.opcode != "constant" or counter.opcode != "get-tuple-element":
            return None
        start = self._start(loop, counter.index, inside)
        return None if start is None else max(int(bound.literal) - start, 0)

    def _outside(self, name: str, fusion: Instruction, outer: list[Instruction]) -> Instruction:
        """What a name inside a fusion stands for: the operand, if it is a parameter."""
        inner = self.computations[fusion.computation("calls")].instructions[name]
        return outer[inner.index] if inner.opcode == "parameter" else inner

    def _start(self, loop: Instruction, index: int, inside: Computation) -> int | None:
        """First value of a loop counter, if it is a constant."""
        state = inside.instructions[loop.operands[0]]
        if state.opcode != "tuple":
            return None
        value = inside.instructions[state.operands[index]]
        while value.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
            value = inside.instructions[value.operands[0]]
        return int(value.literal) if value.opcode == "constant" else None


def parse(text: str) -> Module:
    """Parses the text of an optimized module.

    Raises:
        ValueError: the text has no entry computation, so it is not one.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _instructions(text):
        if line.startswith(("%", "ENTRY ")) and line.endswith("{"):
            name = _NAME.search(line)
            assert name is not None
            current = Computation(name[1], {})
            computations[name[1]] = current
            entry = name[1] if line.startswith("ENTRY ") else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _instruction(line)):
            current.instructions[found.name] = found
    if not entry:
        raise ValueError("the text has no ENTRY computation: it is not an optimized HLO module.")
    return Module(computations, entry)


def _instructions(text: str) -> Iterator[str]:
    """Lines, with those joined over which the attributes of one instruction go."""
    lines: list[str] = []
    for line in text.splitlines():
        goes_on = lines and lines[0].startswith("  ") and not line.startswith("  ") and line != "}"
        if not goes_on:
            yield "".join(lines)
            lines = []
        lines.append(line)
    yield "".join(lines)


def _instruction(line: str) -> Instruction | None:
    head, equals, rest = _COMMENT.sub("", line).strip().partition(" = ")
    if not equals:
        return None
    split = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode, _, _ = rest[split:].strip().partition("(")
    opening = rest.index("(", split)
    closing = _closing(rest, opening)
    literal = rest[opening + 1 : closing]
    return Instruction(
        name=head.removeprefix("ROOT ").lstrip("%"),
        opcode=opcode,
        shape=tuple(_arrays(rest[:split])),
        operands=tuple(_NAME.findall(literal)),
        literal=literal,
        attributes=rest[closing + 1 :],
        is_root=head.startswith("ROOT "),
    )


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for found in re.finditer(r"[()]", text[opening:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return opening + found.start()
    raise ValueError(f"a parenthesis is never closed in: {text[:120]}")


def _arrays(text: str) -> Iterator[Array]:
    for dtype, dims, layout in _ARRAY.findall(text):
        sizes = tuple(int(d) for d in re.findall(r"\d+", dims))
        space = _SPACE.search(layout)
        yield Array(dtype, sizes, int(space[1]) if space else HBM)
