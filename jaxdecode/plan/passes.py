"""Plans of methods that fill slots: a pass over the whole text, and passes over less of it."""

import functools
from collections.abc import Callable

from jaxdecode.core.protocols import Method
from jaxdecode.plan import programs, report
from jaxdecode.plan.floor import Work, window_floor
from jaxdecode.plan.hardware import Chip, Topology
from jaxdecode.plan.programs import Program
from jaxdecode.plan.setup import Setup


def make(
    made: Setup, topology: Topology, method: Method, tick: Callable[[], None] = lambda: None
) -> report.Plan:
    """The plan of a method that fills slots: one program for every number of rows that go in.

    Args:
        made: the model on its mesh.
        topology: the devices.
        method: its bundles.
        tick: called after every compilation, `len(widths(made, method))` times.
    """
    rows = widths(made, method)
    jobs = [functools.partial(programs.compile_pass, made, method, width) for width in rows]
    found, memory, failure = report.compile_all(made, topology.chip, jobs, tick, method.cache)
    scored = programs.num_scored(made, method)
    passes = [
        _pass(made, topology.chip, program, width, scored, keeps=method.drafter.keeps)
        for width, program in zip(rows, found, strict=False)
    ]
    return report.Plan(
        # Kernels do not mask what the rows of a window stand for (core.attention.plan).
        **{**report.setting(made), "attention": "xla"},
        memory=memory,
        failure=failure,
        ladder=(),
        programs=tuple(
            report.listed(program, each.floor_bytes)
            for program, each in zip(found, passes, strict=True)
        ),
        recommended=None,
        curve=None,
        passes=tuple(passes),
    )


def widths(made: Setup, method: Method) -> list[int]:
    """Rows of the passes that a method that fills slots is compiled for."""
    return [*(width for width in method.drafter.widths if width < made.slots), made.slots]


def _pass(
    made: Setup, chip: Chip, program: Program, width: int, scored: int, *, keeps: bool
) -> report.Pass:
    rows = min(width, made.context)
    cached = made.context - rows
    least = window_floor(made, rows, num_scored=scored, cached=cached, written=rows if keeps else 0)
    moved = None if program.traffic is None else program.traffic.step()
    work = least
    if moved is not None:
        work = Work(moved.hbm_bytes, least.flops, moved.wire_bytes)
    bound, seconds = work.bound(chip)
    return report.Pass(
        rows=rows,
        cached=cached,
        scored=scored,
        hbm_bytes=None if moved is None else float(moved.hbm_bytes),
        floor_bytes=least.hbm_bytes,
        milliseconds=seconds * 1e3,
        bound=bound,
    )
