"""The cache of a drafter that has layers of its own, in step with the target's."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdecode.core import prefill
from jaxdecode.core.protocols import Model, Rows
from jaxdecode.core.types import Verdict
from jaxdecode.models.config import ModelConfig


def empty(model: Model, config: ModelConfig, batch: int, slots: int) -> Any:
    """An empty cache for layers as `config` says, one array per layer, beside the target's."""
    return prefill.empty({"layers": ()}, model._replace(config=config), batch, slots)


def store(model: Model, cache: Any, rows: Rows, start: Int[Array, "B"], verdict: Verdict) -> Any:
    """The cache with rows of the accepted path from slot `start` on."""
    # Token ids are never negative: this adds nothing, but makes the write wait for the verdict,
    # and so for the last read. Otherwise XLA may write first, and copies the whole cache for it.
    return model.cache.write(cache, rows, start + jnp.minimum(verdict.tokens[:, 0], 0))
