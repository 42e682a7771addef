"""How the whole suite compiles: cheaply, once where tests can share, and forgotten in time."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import tempfile

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
# Most programs of a test are compiled in others too: the workers of a run share them. The folder
# has no bound: with one, JAX reads the whole folder under a lock at every entry.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxdecode-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Where plugins are installed but their devices are absent, JAX would look for these and fail.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
from xdist.scheduler import LoadScopeScheduling  # noqa: E402

# What may come out differently under another Python, or the JAX that is newest for it: what is
# computed, compiled, drawn and kept on disk. The rest is text, pages, scripts and formulas.
VERSIONED = (
    "tests/caches/",
    "tests/cli/test_generate.py",
    "tests/cli/test_process.py",
    "tests/continuous/test_loop.py",
    "tests/convert/test_checkpoint.py",
    "tests/core/",
    "tests/dist/",
    "tests/kernels/test_commit.py",
    "tests/kernels/test_numerics.py",
    "tests/models/",
    "tests/sampling/",
    "tests/test_api.py",
    "tests/test_infill.py",
    "tests/test_warm.py",
    "tests/training/test_fresh.py",
    "tests/training/test_run.py",
)
# Of these only some lines: one way of drafting, checking and filling each.
BY_METHOD = ("tests/contract/", "tests/drafters/", "tests/training/test_recipes.py")
KEPT = {"ar", "prompt_lookup", "draft_model", "medusa", "fast_dllm"}

# Tracing makes many objects and no garbage worth looking for: a fifth of the time of a test.
gc.disable()


def pytest_addoption(parser):
    parser.addoption(
        "--versioned",
        action="store_true",
        help="only what may differ between versions of Python and JAX; for the second one tried",
    )


def _versioned(nodeid: str) -> bool:
    if nodeid.startswith(BY_METHOD):
        return bool(KEPT & set(nodeid.partition("[")[2].rstrip("]").split("-")))
    return nodeid.startswith(VERSIONED)


def _group(nodeid: str) -> str:
    """Tests of one group share programs: those of a file, or of a method in the contract suite."""
    file, _, test = nodeid.partition("::")
    if "/contract/" in file and "[" in test:
        return "contract-" + test.partition("[")[2].rstrip("]").split("-")[0]
    return file


def pytest_collection_modifyitems(config, items):
    """Keeps every group in one piece, and leaves out what was asked to be."""
    if config.getoption("--versioned"):
        left_out = [item for item in items if not _versioned(item.nodeid)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if _versioned(item.nodeid)]
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
        gc.collect()
