"""What compiling for absent hardware needs; tests skip, and say why, where it is missing."""

import importlib.util

import pytest

from jaxdecode.cli.plan import ENVIRONMENT

needs_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'jaxdecode[tpu]'",
)
needs_cuda_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="the CUDA plugin is not installed: pip install 'jaxdecode[gpu-aot]'",
)


@pytest.fixture(autouse=True)
def quiet_compilers(monkeypatch):
    """libtpu reads these when it is first loaded."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
