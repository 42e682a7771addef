"""jaxdecode: decoding and training for language models in JAX, on one compiled loop.

Importing it touches no device and does not import JAX; the public names load on first use.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxdecode.api import (
        Generation,
        LanguageModel,
        RowStats,
        explain,
        generate,
        load,
        methods,
        stream,
        warmup,
    )

__all__ = [
    "Generation",
    "LanguageModel",
    "RowStats",
    "explain",
    "generate",
    "load",
    "methods",
    "stream",
    "warmup",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from jaxdecode import api

        return getattr(api, name)
    raise AttributeError(f"module 'jaxdecode' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
