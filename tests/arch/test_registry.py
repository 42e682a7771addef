"""The registry: every name in it leads to a file, and every file is in it."""

import dataclasses
import importlib
import inspect
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from jaxdecode.continuous.loop import Continuous
from jaxdecode.convert import heads as head_files
from jaxdecode.core.protocols import Cache, Commit, Drafter, HeadSpec, Models, Verifier
from jaxdecode.core.registry import METHODS
from jaxdecode.evals import toys as smallest
from jaxdecode.options import Options
from tests import toys

PACKAGE = Path(__file__).parents[2] / "jaxdecode"
# Column of the registry, and the folder that its names are files of.
SEATS = {
    "drafter": "drafters",
    "verifier": "verifiers",
    "commit": "commits",
    "cache": "caches",
}
# Files of the folder `continuous/` that are methods; the others are what these share.
SHARED = {"__init__", "loop", "schedules", "write"}
CONTINUOUS = {path.stem for path in (PACKAGE / "continuous").glob("*.py")} - SHARED
SIGNATURES = {
    (Drafter, "prepare"): ["weights"],
    (Drafter, "init"): ["weights", "request", "canvas", "view", "memory"],
    (Drafter, "absorb"): ["weights", "state", "canvas", "start", "num_new", "output"],
    (Drafter, "score"): ["weights", "proposal", "program", "view", "taps"],
    (Drafter, "focus"): ["weights", "state", "request", "window", "candidates"],
    (Drafter, "propose"): ["weights", "state", "request", "canvas", "view"],
    (Drafter, "update"): [
        "weights", "state", "request", "canvas", "proposal", "verdict", "output",
    ],
    (Drafter, "remember"): ["state"],
    (Drafter, "price"): ["weights", "cost"],
    (Drafter, "outputs"): ["state"],
    (Verifier, "verify"): ["weights", "request", "canvas", "proposal", "output"],
    (Verifier, "outcomes"): ["scores", "greedy", "proposal", "marks"],
    (Commit, "select"): ["weights", "request", "canvas", "window", "candidates"],
    (Cache, "init"): ["config", "batch", "slots", "dtype"],
    (Cache, "read"): ["state"],
    (Cache, "write"): ["state", "rows", "start", "num"],
    (Cache, "put"): ["state", "rows", "slots"],
    (Cache, "select"): ["rows", "path"],
    (Continuous, "extent"): ["width"],
    (Continuous, "encode"): ["weights", "source"],
    (Continuous, "lengths"): ["weights", "memory"],
    (Continuous, "begin"): ["noise"],
    (Continuous, "step"): ["weights", "memory", "lengths", "state", "index", "noise"],
    (Continuous, "read"): ["weights", "memory", "lengths", "state", "width"],
}  # fmt: skip


def _bundle(seat: str, file: str):
    module = importlib.import_module(f"jaxdecode.{SEATS[seat]}.{file}")
    if seat == "cache":
        return module.make()
    fills = any(entry.fills for entry in METHODS.values() if getattr(entry, seat) == file)
    lm = toys.denoiser() if fills else toys.model()
    bound = lm.bound._replace(tokenizer=SimpleNamespace(token_bytes=[b"\n"]))
    if seat == "verifier":
        return module.make(module.Config(), Models(bound, toys.model().bound))
    here = (e for e in METHODS.values() if getattr(e, seat) == file and e.continuous is None)
    kinds = {entry.heads for entry in here} - {None}
    heads = smallest.heads(kinds.pop(), lm).spec if kinds else None
    if seat == "commit":
        return module.make(module.Config(), Models(bound, None, heads))
    return module.make(module.Config(), Models(bound, bound, heads))


def _in_use() -> list[tuple[str, str]]:
    found = {(seat, getattr(entry, seat)) for entry in METHODS.values() for seat in SEATS}
    # What trees commit is the loop's own business.
    return sorted(
        found - {("commit", entry.commit) for entry in METHODS.values() if not entry.fills}
    )


def problems(bundle) -> list[str]:
    """Functions of a bundle that do not have the fixed parameter names."""
    found = []
    for (kind, field), wanted in SIGNATURES.items():
        if isinstance(bundle, kind) and getattr(bundle, field) is not None:
            parameters = inspect.signature(getattr(bundle, field)).parameters.values()
            # Keyword-only extras are a cache's own business; the seam is positional.
            got = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
            if got != wanted:
                found.append(f"{field}{got}, want {wanted}")
    return found


@pytest.mark.parametrize(("seat", "file"), _in_use())
def test_names_lead_to_bundles_with_fixed_signatures(seat, file):
    bundle = _bundle(seat, file)
    kinds = {"drafter": Drafter, "verifier": Verifier, "commit": Commit, "cache": Cache}
    assert type(bundle) is kinds[seat]
    assert problems(bundle) == []


@pytest.mark.parametrize(("seat", "folder"), SEATS.items())
def test_no_file_is_unused(seat, folder):
    files = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
    assert files == {file for used, file in _in_use() if used == seat}


def test_policies_are_files_in_search_and_back():
    files = {path.stem for path in (PACKAGE / "search").glob("*.py")} - {"__init__"}
    assert files == {entry.policy for entry in METHODS.values()} - {None}
    for file in files:
        module = importlib.import_module(f"jaxdecode.search.{file}")
        got = list(inspect.signature(module.run).parameters)
        assert got == ["config", "options", "prompts", "target", "draft", "progress"]
        assert module.Config()


def test_continuous_methods_are_files_and_back():
    files = {entry.continuous for entry in METHODS.values()} - {None}
    assert files == CONTINUOUS
    for file in files:
        module = importlib.import_module(f"jaxdecode.continuous.{file}")
        assert list(inspect.signature(module.make).parameters) == ["config", "models"]
        (kind,) = {entry.heads for entry in METHODS.values() if entry.continuous == file}
        heads = HeadSpec(kind, head_files.shape_of(kind, {}))
        made = module.make(module.Config(), Models(toys.model().bound, None, heads))
        assert type(made) is Continuous and problems(made) == []


def test_every_seam_of_the_bundles_is_checked():
    for kind in (Drafter, Verifier, Commit, Cache, Continuous):
        data = {"taps", "widths", "max_depth", "prefilled", "keeps", "windows"}
        data |= {"num_steps", "calls", "size", "max_length"}
        functions = set(kind._fields) - data
        assert functions == {field for owner, field in SIGNATURES if owner is kind}


@pytest.mark.parametrize("name", METHODS)
def test_a_line_promises_something_that_can_be_checked(name):
    entry = METHODS[name]
    assert entry.level in ("L0", "L1", "L2", "L3") and entry.tier in ("stable", "lab")
    assert entry.reference in METHODS and entry.summary and entry.source
    assert set(entry.refuses) <= {field.name for field in dataclasses.fields(Options)}


def test_the_signature_check_can_fail():
    wrong = Verifier(verify=lambda weights, request, canvas, draft, output: None)
    assert len(problems(wrong)) == 1


def test_registry_is_pure_data():
    module = importlib.import_module("jaxdecode.core.registry")
    imported = [name for name, value in vars(module).items() if isinstance(value, ModuleType)]
    assert imported == []
