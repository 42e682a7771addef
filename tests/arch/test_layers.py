"""Who may import whom: read from the syntax tree, so that late imports count too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "jaxdecode"
# A unit may import units of lower rank, and itself.
RANKS = {
    "errors": 0,
    "checks": 0.5,
    "jsonl": 0.5,
    "paths": 0,
    "dist": 0.8,
    "core": 1,
    "sampling": 2,
    "models": 3,
    "caches": 4,
    "trees": 4,
    "heads": 4.5,
    "drafters": 5,
    "verifiers": 5,
    "commits": 5,
    "convert": 6,
    "jobs": 6.5,
    "constraints": 6.5,
    "journal": 6.6,
    "template": 6.5,
    "options": 7,
    "engine": 7,
    "trace": 7.5,
    "results": 8,
    "resolve": 8,
    "costs": 8,
    "refill": 8.1,
    "language_model": 8.2,
    "search": 8.5,
    "continuous": 8.5,
    "zoo": 8.5,
    "api": 9,
    "many": 9.2,
    "warm": 9.3,
    "plan": 9.5,
    "evals": 10,
    "training": 10.5,
    "cli": 11,
    "__main__": 12,
}
FLAX_ONLY_IN = ("models/", "heads/")
KERNELS_ONLY_IN = ("core/attention.py",)
ENVIRONMENT_ONLY_IN = ("cli/", "dist/", "convert/download.py", "paths.py")
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def _imports(tree: ast.AST) -> Iterator[str]:
    """Full names of everything imported, `from a import b` as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)


def _reads_environment(tree: ast.AST) -> bool:
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return bool(names & {"environ", "getenv", "putenv"}) or any(
        name in ("os.environ", "os.getenv") for name in _imports(tree)
    )


def violations(file: str, code: str) -> list[str]:
    """What a file of this place in the package may not do, but does."""
    tree, found = ast.parse(code), []
    unit = file.removesuffix(".py").split("/")[0]
    for name in _imports(tree):
        root, *rest = name.split(".")
        if name.startswith("."):
            found.append(f"relative import {name}")
        elif root == "flax" and not file.startswith(FLAX_ONLY_IN):
            found.append("flax outside models/ and heads/")
        elif root == "pallas_kernels" and not file.startswith(KERNELS_ONLY_IN):
            found.append("kernels outside core/attention.py")
        elif root == "jaxdecode" and rest and not rest[0].startswith("__"):
            if rest[0] not in RANKS:
                found.append(f"{name} has no place in the layers")
            elif unit != rest[0] and RANKS[rest[0]] >= RANKS.get(unit, -1):
                found.append(f"{unit} imports {rest[0]}")
    if _reads_environment(tree) and not file.startswith(ENVIRONMENT_ONLY_IN):
        found.append("reads the environment")
    return found


@pytest.mark.parametrize("file", [file for file in FILES if file != "__init__.py"])
def test_file_keeps_to_its_layer(file):
    assert violations(file, (PACKAGE / file).read_text(encoding="utf-8")) == []


def test_every_unit_has_a_rank_and_every_rank_a_unit():
    units = {file.removesuffix(".py").split("/")[0] for file in FILES} - {"__init__"}
    assert units == set(RANKS)


@pytest.mark.parametrize(
    ("file", "code", "message"),
    [
        ("core/loop.py", "from jaxdecode.models import decoder", "core imports models"),
        ("core/loop.py", "def f():\n  from jaxdecode import api", "core imports api"),
        ("models/layers.py", "import jaxdecode.caches.dense", "models imports caches"),
        ("drafters/none.py", "from jaxdecode.verifiers import x", "drafters imports verifiers"),
        ("caches/dense.py", "import flax.linen as nn", "flax outside models/ and heads/"),
        ("models/layers.py", "from pallas_kernels import x", "kernels outside core/attention.py"),
        ("options.py", "import os\nx = os.environ['A']", "reads the environment"),
        ("engine.py", "from os import getenv", "reads the environment"),
        ("core/loop.py", "from . import types", "relative import .None.types"),
        ("api.py", "from jaxdecode.utils import x", "jaxdecode.utils.x has no place in the layers"),
    ],
)
def test_the_rules_can_fail(file, code, message):
    assert violations(file, code) == [message]


def test_what_is_allowed_passes():
    assert violations("models/layers.py", "import flax.linen\nfrom jaxdecode.core import ops") == []
    assert violations("cli/common.py", "import os\nx = os.environ.get('A')") == []
    assert violations("core/loop.py", "from jaxdecode import __version__") == []


def test_models_know_nothing_of_speculation():
    for file in FILES:
        if file.startswith("models/"):
            text = (PACKAGE / file).read_text(encoding="utf-8").lower()
            assert not [word for word in ("draft", "specul", "verif") if word in text], file
