"""Which tokens of packed texts are given and which are written, for texts written as a whole."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Model
from jaxdecode.errors import InputError
from jaxdecode.models.bidirectional import Side
from jaxdecode.training.objective import Batch, Texts


class Parts(NamedTuple):
    """Which tokens of packed texts are given and which are written.

    Attributes:
        same: whether two places belong to one text.
        source: places that are given.
        answer: places that are written.
        places: of each token in its answer, from 0.
        length: tokens of the answer of each place's text.
    """

    same: Bool[Array, "B T T"]
    source: Bool[Array, "B T"]
    answer: Bool[Array, "B T"]
    places: Int[Array, "B T"]
    length: Int[Array, "B T"]


def parts_of(batch: Batch, max_length: int) -> Parts:
    """The last answer of every text, and what stands before it.

    Args:
        batch: packed texts.
        max_length: tokens of an answer that are learned, the first so many.
    """
    real = batch.segments > 0
    same = (batch.segments[:, :, None] == batch.segments[:, None, :]) & real[:, None, :]
    given = real & ((batch.weight == 0) | (batch.positions == 0))
    last = jnp.where(same & given[:, None, :], batch.positions[:, None, :], -1).max(-1)
    source = real & (batch.positions <= last)
    places = batch.positions - last - 1
    answer = real & (places >= 0) & (places < max_length)
    return Parts(same, source, answer, places, (same & answer[:, None, :]).sum(-1))


class Aligned(NamedTuple):
    """Answers from their first place on, one per row.

    Attributes:
        tokens: of answers.
        states: of answers.
        real: which places there are.
        places: 0, 1, ... of answers.
        prompt: states of prompts; `seen [B, T]` says which there are.
    """

    tokens: Int[Array, "B L"]
    states: Float[Array, "B L D"]
    real: Bool[Array, "B L"]
    places: Int[Array, "B L"]
    prompt: Side


def check_alone(recipe: str, texts: Texts | None) -> None:
    """Refuses rows that hold several texts."""
    if texts is not None and next(iter(texts.batches())).segments.max() > 1:
        raise InputError(f"recipe {recipe!r} learns one text per row; set data.pack to false.")


def apart(
    model: Model, target_params: Any, batch: Batch, max_length: int, tap: str | None = None
) -> tuple[Float[Array, "B T D"], ...]:
    """The frozen target's last states, of prompts and of answers, neither seeing the other.

    Args:
        model: the target.
        target_params: its parameters.
        batch: packed texts.
        max_length: tokens of an answer that are learned.
        tap: other states that are wanted too.
    """
    parts = parts_of(batch, max_length)
    num_rows, width = batch.tokens.shape
    program = MaskProgram(
        cached=jnp.zeros(num_rows, jnp.int32),
        positions=jnp.where(parts.answer, parts.places, batch.positions),
        num_new=jnp.full(num_rows, width, jnp.int32),
        segments=2 * batch.segments + parts.answer,
    )
    frozen = jax.lax.stop_gradient(target_params)
    taps = () if tap is None else (tap,)
    out = model.target.forward(frozen, batch.tokens, program, None, taps)
    return out.hidden, *(out.taps[name] for name in taps)


def aligned(
    batch: Batch, states: Float[Array, "B T D"], prompt: Float[Array, "B T E"], max_length: int
) -> Aligned:
    """Answers shifted to the beginning of the row.

    Args:
        batch: one text per row.
        states: of the texts, of which those of answers are taken.
        prompt: of the texts, of which those of prompts are seen.
        max_length: tokens of an answer that are learned.
    """
    parts = parts_of(batch, max_length)
    first = parts.answer.argmax(1)
    num_rows, width = batch.tokens.shape
    num = min(width, max_length)
    places = jnp.broadcast_to(jnp.arange(num, dtype=jnp.int32), (num_rows, num))
    source = jnp.minimum(places + first[:, None], width - 1)
    return Aligned(
        tokens=jnp.take_along_axis(batch.tokens, source, axis=1),
        states=jnp.take_along_axis(states, source[..., None], axis=1),
        real=places < parts.answer.sum(1)[:, None],
        places=places,
        prompt=Side(prompt, batch.positions, parts.source),
    )
