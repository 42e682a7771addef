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
# Where plugins are installed but their devices are absent, JAX would look for these and fail.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
from xdist.scheduler import LoadScopeScheduling  # noqa: E402


def _group(nodeid: str) -> str:
    """Tests of one group share programs: those of a file, or of a method in the contract suite."""
    file, _, test = nodeid.partition("::")
    if "/contract/" in file and "[" in test:
        return "contract-" + test.partition("[")[2].rstrip("]").split("-")[0]
    return file


def pytest_collection_modifyitems(items):
    """Keeps every group in one piece."""
    order = {}
    for item in items:
        order.setdefault(_group(item.nodeid), len(order))
    items.sort(key=lambda item: order[_group(item.nodeid)])


def pytest_xdist_make_scheduler(config, log):
    """Keeps every group on one worker."""
    return _Groups(config, log)


class _Groups(LoadScopeScheduling):
    def _split_scope(self, nodeid):
        return _group(nodeid)


def pytest_runtest_teardown(item, nextitem):
    """Drops compiled programs: each holds memory maps, of which Linux grants a process 65,530."""
    if nextitem is None or _group(nextitem.nodeid) != _group(item.nodeid):
        jax.clear_caches()
