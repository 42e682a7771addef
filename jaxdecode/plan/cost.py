"""HBM bytes of one run of one instruction; what counts and what does not is said in `traffic`."""

import re

from jaxdecode.plan.hlo import Array, Computation, Instruction, Module

_FREE = frozenset(
    {
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "add-dependency",
        "opt-barrier",
        "partition-id",
        "replica-id",
        "domain",
        "async-update",
        "while",
        "conditional",
        "call",
        "async-start",
    }
)
_SLICES = frozenset({"dynamic-slice", "slice", "gather"})
_VIEWS = frozenset({"bitcast", "get-tuple-element", "tuple", "reshape", "opt-barrier"})
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Parts of one collective that TPU spreads over several fusions.
_STEPS = ("AsyncCollectiveStart", "AsyncCollectiveDone")
_KERNELS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "mosaic_gpu_v2")
_ESTIMATE = re.compile(r'"bytes_accessed":"?(\d+)')


def hbm_bytes(module: Module, instruction: Instruction, inside: Computation) -> int:
    """HBM bytes of one run of one instruction."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0
    inputs = [inside.instructions[name].shape for name in dict.fromkeys(instruction.operands)]
    everything = _hbm(instruction.shape) + sum(map(_hbm, inputs))
    if opcode == "fusion":
        return _fusion(module, instruction, inside)
    if opcode == "custom-call":
        return _custom_call(instruction, everything)
    if opcode == "dynamic-update-slice":
        return _in_place(instruction.shape[0], inputs[1])
    if opcode == "scatter":
        return 2 * _in_place(instruction.shape[0], inputs[-1])
    base = opcode.removesuffix("-start")
    if base in _SLICES:
        made = instruction.shape[len(inputs[0]) if opcode.endswith("-start") else 0]
        return made.hbm_bytes + (made.nbytes if _hbm(inputs[0]) else 0)
    if base in COLLECTIVES or base == "copy":
        return collective_bytes(instruction, inside)
    return everything


def collective_bytes(instruction: Instruction, inside: Computation) -> int:
    """HBM bytes of a collective or a copy; a started one lists its operands beside its results."""
    inputs = [inside.instructions[name].shape for name in instruction.operands]
    made = 0 if scatters(inside) else _hbm(results(instruction, inputs))
    return made + sum(map(_hbm, inputs))


def scatters(inside: Computation) -> bool:
    """Whether a fused computation keeps a slice of an all-reduce, which its fusion writes."""
    return inside.name.startswith("all-reduce-scatter")


def results(instruction: Instruction, inputs: list[tuple[Array, ...]]) -> tuple[Array, ...]:
    """What an instruction makes, without the operands that a started one lists beside it."""
    if instruction.opcode == "copy-start":
        return instruction.shape[:1]
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        given = sum(map(len, inputs))
        return instruction.shape[given : 2 * given]
    return instruction.shape


def _hbm(shape: tuple[Array, ...]) -> int:
    return sum(array.hbm_bytes for array in shape)


def _in_place(whole: Array, update: tuple[Array, ...]) -> int:
    """Writing an update into an array: the update is read, and written where the array lies."""
    return _hbm(update) + (update[0].nbytes if whole.hbm_bytes else 0)


def _custom_call(instruction: Instruction, everything: int) -> int:
    target = (instruction.attribute("custom_call_target") or "").strip('"')
    if target == "AllocateBuffer" or target in _STEPS:
        return 0
    estimate = _ESTIMATE.search(instruction.attributes) if target in _KERNELS else None
    return min(int(estimate[1]), everything) if estimate else everything


def _fusion(module: Module, fusion: Instruction, inside: Computation) -> int:
    body = module.computations[fusion.computation("calls")]
    total = 0
    for parameter in body.parameters:
        operand = inside.instructions[fusion.operands[parameter.index]]
        whole = _hbm(operand.shape)
        if whole:
            total += min(_read(module, body, parameter), whole)
    return total + _written(module, body, body.root, fusion.shape)


def _read(module: Module, body: Computation, value: Instruction) -> int:
    """Bytes of a value in HBM that a fused computation reads."""
    whole = sum(array.nbytes for array in value.shape)
    total = 0
    for user in body.users[value.name]:
        if user.opcode in _SLICES and user.operands[0] == value.name:
            total += user.shape[0].nbytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
            continue
        elif user.opcode in _VIEWS:
            total += 0 if user.is_root else _read(module, body, user)
        elif user.opcode == "fusion":
            inner = module.computations[user.computation("calls")]
            places = [p for p in inner.parameters if user.operands[p.index] == value.name]
            total += sum(_read(module, inner, place) for place in places)
            if _viewed(inner) in places and not user.is_root:
                # The inner fusion only hands the value on, under another shape.
                total += _read(module, body, user)
        elif _is_step(user):
            continue
        else:
            return whole
        if total >= whole:
            return whole
    return total


def _viewed(body: Computation) -> Instruction:
    """What the root of a computation is a view of."""
    found = body.root
    while found.opcode in _VIEWS:
        found = body.instructions[found.operands[0]]
    return found


def _written(
    module: Module, body: Computation, result: Instruction, shape: tuple[Array, ...]
) -> int:
    """Bytes that a fused computation writes to HBM for a result of this shape."""
    if not _hbm(shape):
        return 0
    if result.opcode == "tuple" and len(result.operands) == len(shape):
        parts = zip(result.operands, shape, strict=True)
        return sum(_written(module, body, body.instructions[n], (part,)) for n, part in parts)
    if result.opcode in ("bitcast", "reshape", "get-tuple-element"):
        return _written(module, body, body.instructions[result.operands[0]], shape)
    if result.opcode == "dynamic-update-slice":
        return body.instructions[result.operands[1]].shape[0].nbytes
    if result.opcode == "scatter":
        return 2 * body.instructions[result.operands[-1]].shape[0].nbytes
    if result.opcode == "fusion":
        inner = module.computations[result.computation("calls")]
        return _written(module, inner, inner.root, shape)
    if result.opcode == "parameter" or _is_step(result):
        return 0
    return _hbm(shape)


def _is_step(instruction: Instruction) -> bool:
    """Whether it is a collective, or a part of one: those are counted where they start."""
    target = (instruction.attribute("custom_call_target") or "").strip('"')
    return instruction.opcode.removesuffix("-start") in COLLECTIVES or target in _STEPS
