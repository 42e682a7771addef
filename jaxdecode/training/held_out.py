"""Held-out texts, measured by the objective's loss: of models that are trained by it alone."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecode.training.data import Data, pack, to_batch
from jaxdecode.training.objective import Batch, Moment
from jaxdecode.training.texts import Text

# Noises that every text is measured with.
DRAWS = 4
# Losses that change over a run are those of its end, so that measurements can be compared.
_END = 999_999, 1_000_000


class LossExam:
    """Held-out texts, packed as those of training; the noise is the same at every measurement.

    Attributes:
        texts: what is measured; empty if there is nothing.
    """

    def __init__(self, loss: Callable[..., Any], texts: Sequence[Text], rows: int, data: Data):
        width = data.max_length
        self.texts = [Text(text.tokens[:width], text.counts[:width]) for text in texts]
        lines = [[text] for text in self.texts]
        if data.pack:
            packed = pack([len(text.tokens) for text in self.texts], width)
            lines = [[self.texts[i] for i in row] for row in packed]
        self._batches = [to_batch(lines[i : i + rows], width) for i in range(0, len(lines), rows)]
        step, num_steps = _END
        self._loss = jax.jit(lambda *args: loss(*args, Moment(jnp.int32(step), num_steps))[0])

    def measure(self, params: Any, target: Any) -> float:
        """Mean loss per learned token, in the objective's unit."""
        total, count = 0.0, 0.0
        for i, batch in enumerate(self._batches):
            weight = float(np.sum(batch.weight))
            for draw in range(DRAWS):
                key = jax.random.fold_in(jax.random.key(i), draw)
                total += weight * float(self._loss(params, target, _on_device(batch), key))
                count += weight
        return total / max(count, 1.0)


def _on_device(batch: Batch) -> Batch:
    return jax.tree.map(jnp.asarray, batch)
