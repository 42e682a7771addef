"""jaxdecode: decoding and training for language models in JAX, on one compiled loop.

Importing it touches no device and does not import JAX; the public names load on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxdecode.api import (
        Heads,
        LanguageModel,
        explain,
        generate,
        infill,
        load,
        load_heads,
        methods,
        stream,
    )
    from jaxdecode.many import generate_many
    from jaxdecode.results import Generation, RowStats
    from jaxdecode.training.run import Run, train
    from jaxdecode.warm import warmup, warmup_many

__all__ = [
    "Generation",
    "Heads",
    "LanguageModel",
    "RowStats",
    "Run",
    "explain",
    "generate",
    "generate_many",
    "infill",
    "load",
    "load_heads",
    "methods",
    "stream",
    "train",
    "warmup",
    "warmup_many",
]
_HOMES = {
    "Generation": "results",
    "RowStats": "results",
    "Run": "training.run",
    "generate_many": "many",
    "train": "training.run",
    "warmup": "warm",
    "warmup_many": "warm",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        home = importlib.import_module(f"jaxdecode.{_HOMES.get(name, 'api')}")
        return getattr(home, name)
    raise AttributeError(f"module 'jaxdecode' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
