"""Proposes what was left open: mesh, batch, cache dtype and tree size.

Candidates are ranked by their floors, which takes no compiler; the best are then compiled, because
only a compiler knows temporaries and what is read twice.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from jaxdecode.dist import mesh as meshes
from jaxdecode.dist import rules
from jaxdecode.errors import InputError, UnsupportedError
from jaxdecode.models.config import ModelConfig
from jaxdecode.plan import report
from jaxdecode.plan import setup as setups
from jaxdecode.plan.curve import Curve
from jaxdecode.plan.floor import floor
from jaxdecode.plan.hardware import Topology

CACHE_DTYPES = ("bfloat16", "float32")
# Rows per index of the data axis that are tried where no batch is given.
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Share of the memory that a candidate leaves for temporaries before it is compiled.
_ROOM = 0.1
# Candidates that are compiled.
COMPILED = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration, judged by its floors.

    Attributes:
        mesh: axis sizes.
        batch: rows.
        cache_dtype: of keys and values.
        nodes: with most tokens per second.
        arguments: bytes per device of weights and cache.
        milliseconds: roofline of a step.
        tokens_per_second: of the whole batch, at most.
    """

    mesh: dict[str, int]
    batch: int
    cache_dtype: str
    nodes: int
    arguments: int
    milliseconds: float
    tokens_per_second: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """What is given and what is open; None is open.

    Attributes:
        config: the model.
        topology: the devices.
        devices: its abstract devices.
        context: tokens of a row.
        dtype: of parameters.
        mesh: axis sizes.
        batch: rows.
        cache_dtype: of keys and values.
        whole_heads: whether meshes that repeat KV heads are refused.
        attention: who computes it, as `load` takes it.
        layers: their form, as `load` takes it.
    """

    config: ModelConfig
    topology: Topology
    devices: Sequence[Any]
    context: int
    dtype: str
    mesh: dict[str, int] | None = None
    batch: int | None = None
    cache_dtype: str | None = None
    whole_heads: bool = False
    attention: str = "auto"
    layers: str = "auto"


def rank(space: Space, curve: Curve) -> list[Candidate]:
    """All candidates that fit by their weights and cache, most tokens per second first.

    Raises:
        UnsupportedError: none does; the message says what the smallest one lacks.
        InputError: the model or the batch cannot be split over any mesh.
    """
    found: list[Candidate] = []
    too_large: list[tuple[setups.Setup, report.Memory]] = []
    refused: InputError | None = None
    for sizes in _meshes(space):
        try:
            for made in _setups(space, sizes):
                memory = report.arguments(made, space.topology.chip)
                if memory.needed <= (1 - _ROOM) * memory.available:
                    found.append(_judged(made, sizes, memory.needed, space, curve))
                else:
                    too_large.append((made, memory))
        except InputError as error:
            refused = refused or error
    if found:
        return sorted(found, key=lambda candidate: -candidate.tokens_per_second)
    if too_large:
        raise _nothing_fits(space, *min(too_large, key=lambda pair: pair[1].needed))
    assert refused is not None
    raise refused


def _nothing_fits(space: Space, made: setups.Setup, memory: report.Memory) -> UnsupportedError:
    room = _ROOM * memory.available
    return UnsupportedError(
        f"nothing fits on {space.topology.name}: the smallest configuration, mesh "
        f"{meshes.describe(dict(made.mesh.shape))} with batch {made.batch} and context "
        f"{made.context}, needs {memory.weights / 1e9:.1f} GB of weights and "
        f"{memory.cache / 1e9:.1f} GB of cache per device. With {room / 1e9:.1f} GB for "
        f"temporaries that is {(memory.needed + room - memory.available) / 1e9:.1f} GB more than "
        f"the {memory.available / 1e9:.1f} GB there are. Use more devices, a shorter context or a "
        "smaller batch."
    )


def best(
    space: Space,
    candidates: Sequence[Candidate],
    curve: Curve,
    *,
    tick: Callable[[], None] = lambda: None,
) -> list[report.Plan]:
    """Plans of the first candidates, compiled; those that fit first, by tokens per second."""
    plans = []
    for candidate in candidates[:COMPILED]:
        made = setup(space, candidate.mesh, candidate.batch, candidate.cache_dtype)
        plan = report.make(
            made,
            space.topology,
            curve=curve,
            nodes=(1, candidate.nodes),
            with_prefill=False,
            tick=tick,
        )
        plans.append(plan)
    return sorted(plans, key=lambda plan: (not plan.fits, -_speed(plan)))


def setup(space: Space, sizes: dict[str, int], batch: int, cache_dtype: str) -> setups.Setup:
    """The setup of one choice.

    Raises:
        InputError: it cannot be split so, or would have to repeat heads that must not be.
    """
    made = setups.setup(
        space.config,
        meshes.make(sizes, space.devices),
        batch=batch,
        context=space.context,
        dtype=space.dtype,
        kv_dtype=cache_dtype,
        attention=space.attention,
        layers=space.layers,
    )
    if space.whole_heads and made.kv_copies > 1:
        num, size = space.config.num_kv_heads, sizes[rules.RULES["kv_heads"]]
        fits = [str(n) for n in range(1, num + 1) if num % n == 0]
        raise InputError(
            f"{num} KV heads do not divide by model={size}; use a model axis of "
            f"{', '.join(fits)}, or allow each head to be kept {made.kv_copies} times."
        )
    return made


def num_programs(candidates: Sequence[Candidate]) -> int:
    """Compilations of `best`."""
    return sum(
        report.num_programs((candidate.nodes,), with_prefill=False)
        for candidate in candidates[:COMPILED]
    )


def _speed(plan: report.Plan) -> float:
    return max((rung.tokens_per_second for rung in plan.ladder), default=0.0)


def _meshes(space: Space) -> Iterator[dict[str, int]]:
    if space.mesh is not None:
        yield space.mesh
        return
    total = len(space.devices)
    for model in range(1, total + 1):
        if total % model == 0:
            yield {"data": total // model, "model": model}


def _setups(space: Space, sizes: dict[str, int]) -> Iterator[setups.Setup]:
    data = sizes[rules.RULES["rows"]]
    batches = [data * rows for rows in _ROWS] if space.batch is None else [space.batch]
    kinds = CACHE_DTYPES if space.cache_dtype is None else (space.cache_dtype,)
    first = setup(space, sizes, batches[0], kinds[0])
    for batch in batches:
        for kind in kinds:
            yield dataclasses.replace(first, batch=batch, kv_dtype=jnp.dtype(kind))


def _judged(
    made: setups.Setup, sizes: dict[str, int], needed: int, space: Space, curve: Curve
) -> Candidate:
    chip = space.topology.chip

    def speed(nodes: int) -> tuple[float, float]:
        _, seconds = floor(made, nodes).bound(chip)
        return made.batch * curve.tokens(nodes) / seconds, seconds

    nodes = max(report.LADDER, key=lambda n: speed(n)[0])
    rate, seconds = speed(nodes)
    return Candidate(
        mesh=sizes,
        batch=made.batch,
        cache_dtype=made.kv_dtype.name,
        nodes=nodes,
        arguments=needed,
        milliseconds=seconds * 1e3,
        tokens_per_second=rate,
    )
