"""What a step costs: measured once per model, device, batch size and compiled widths, then kept.

Drafters that choose how much to draft ask for it (`Drafter.price`). The loop itself is timed, with
prices that leave it one width only, on a canvas of the size in use: nothing else is compiled.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecode import __version__, engine
from jaxdecode.core import loop
from jaxdecode.core.types import Request
from jaxdecode.paths import cache_dir

# Steps per timing and timings per width. The shortest counts: what else runs only adds time.
STEPS, REPEATS = 8, 5


def with_prices(engine_: engine.Engine, request: Request, slots: int) -> None:
    """Hands the drafter the measured cost of its widths on such a canvas, if it asks for costs."""
    price = engine_.method.drafter.price
    if price is None:
        return
    name = _key(engine_, request.key.shape[0])
    costs = _read().get(name)
    if costs is None:
        costs = measure(engine_, request, slots)
        _write(name, costs)
    engine_.weights = price(engine_.weights, np.asarray(costs, np.float32))


def measure(engine_: engine.Engine, request: Request, slots: int) -> list[float]:
    """Seconds per step of each of the drafter's widths, on a canvas of `slots` slots."""
    drafter = engine_.method.drafter
    assert drafter.price is not None
    timings: list[list[float]] = [[] for _ in drafter.widths]
    for repeat in range(REPEATS + 1):
        for index in range(len(drafter.widths)):
            only = np.full(len(drafter.widths), np.inf, np.float32)
            only[index] = 1.0
            weights = drafter.price(engine_.weights, only)
            scratch = dataclasses.replace(engine_, weights=weights)
            seconds = seconds_per_step(scratch, request, slots)
            if repeat:  # the first time it compiles
                timings[index].append(seconds)
    # Scoring more nodes cannot take less time.
    return np.maximum.accumulate(np.min(timings, axis=1)).tolist()


def seconds_per_step(engine_: engine.Engine, request: Request, slots: int) -> float:
    """One timing of a few steps, on a canvas of `slots` slots; the first one compiles."""
    # One prompt token and no stops: every row runs until it was timed.
    request = dataclasses.replace(request, stop_tokens=jnp.full_like(request.stop_tokens, -1))
    prompts = [[0]] * request.key.shape[0]
    state = engine.prefilled(engine_, request, prompts, slots - engine_.slack - 1)
    method, target = engine_.method, engine_.model.target
    begin = time.perf_counter()
    state = loop.run(
        engine_.weights, request, state, jnp.int32(STEPS), target=target, method=method
    )
    steps = int(jax.block_until_ready(state.step))
    return (time.perf_counter() - begin) / max(steps, 1)


def _key(engine_: engine.Engine, batch: int) -> str:
    device = jax.devices()[0]
    model = engine_.model
    dtype = jax.tree.leaves(engine_.weights.target)[0].dtype.name
    what = (
        model.config,
        dtype,
        model.kv_dtype,
        jax.tree.structure(engine_.weights.target),
        engine_.method.drafter.widths,
        batch,
        device.platform,
        device.device_kind,
        jax.device_count(),
        model.mesh and tuple(model.mesh.shape.items()),
        os.cpu_count(),
        jax.__version__,
        __version__,
    )
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def _file() -> Path:
    return cache_dir() / "step_costs.json"


def _read() -> dict[str, list[float]]:
    """What was measured before; a damaged file is measured anew."""
    try:
        content = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}

    def good(x):
        return isinstance(x, list) and all(isinstance(c, float) and c > 0 for c in x)

    return {k: v for k, v in content.items() if good(v)} if isinstance(content, dict) else {}


def _write(name: str, costs: list[float]) -> None:
    """Adds one line, atomically; a cache that cannot be written is no reason to fail."""
    with contextlib.suppress(OSError):
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(_read() | {name: costs}, indent=1)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as part:
            part.write(content)
        Path(part.name).replace(file)
