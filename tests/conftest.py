"""How the whole suite compiles: cheaply, once where tests can share, and forgotten in time."""

import importlib.metadata
import os

# Programs of the tests are tiny and run a few times: optimising them costs more than it saves.
# Set before JAX starts, so that every worker and child process reads it; XLA_FLAGS= in the
# environment compiles as users do.
CHEAP = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Halves the time; later versions have no such choice and end at an unknown flag.
    CHEAP.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(CHEAP))

import jax  # noqa: E402
import pytest  # noqa: E402


def _group(item: pytest.Item) -> str:
    """Tests of one group share programs: those of a file, or of a method in the contract suite."""
    if item.path.parent.name == "contract" and isinstance(item, pytest.Function):
        asked = getattr(item, "callspec", None)
        if asked is not None and "name" in asked.params:
            return f"contract-{asked.params['name']}"
    return item.nodeid.split("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keeps every group on one worker, in one piece."""
    order = {}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
        order.setdefault(_group(item), len(order))
    items.sort(key=lambda item: order[_group(item)])


def pytest_runtest_teardown(item, nextitem):
    """Drops compiled programs: each holds memory maps, of which Linux grants a process 65,530."""
    if nextitem is None or _group(nextitem) != _group(item):
        jax.clear_caches()
