"""Texts with probes laid out for training: what decoding does at every step, in one pass.

Behind the T tokens of a row stand k probes for each of P of its places. They see what the probes
of a tree see: the tokens of their text up to their place, and the probes before them of that place.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxdecode.core import masks, ops
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Target
from jaxdecode.core.types import pytree
from jaxdecode.training import losses
from jaxdecode.training.objective import Batch, ahead


@pytree
class Laid:
    """Input of one pass, and what its probes should say.

    Attributes:
        tokens: the texts, then the probes' numbers from 0.
        probe: which rows are probes.
        program: who sees whom.
        places: the token that each group of probes follows.
        wanted: token that probe j of each place guesses, j + 1 places on for j from 1.
        weight: its weight; 0 where the text has none.
    """

    tokens: Int[Array, "B R"]
    probe: Bool[Array, "B R"]
    program: MaskProgram
    places: Int[Array, "B P"]
    wanted: Int[Array, "B P k"]
    weight: Float[Array, "B P k"]

    def split(self, rows: Float[Array, "B R D"]) -> tuple[Array, Array]:
        """Rows of the texts `[B, T, D]`, and of the probes `[B, P, k, D]`."""
        batch, num_places, k = self.wanted.shape
        size = rows.shape[1] - num_places * k
        return rows[:, :size], rows[:, size:].reshape(batch, num_places, k, -1)

    def later(self, rows: Float[Array, "B T D"], offset: int = 0) -> Float[Array, "B P k D"]:
        """Of each probe the row of the token that stands where it stands, or `offset` later."""
        index = self.places[:, :, None] + jnp.arange(1, self.wanted.shape[2] + 1) + offset
        return jax.vmap(lambda row, i: row[jnp.minimum(i, len(row) - 1)])(rows, index)


def lay(
    batch: Batch,
    key: Array,
    *,
    num_probes: int,
    num_places: int | None,
    counts: Shaped[Array, "B T k"] | None = None,
) -> Laid:
    """The batch with probes behind it.

    Args:
        batch: texts.
        key: PRNG key of the places.
        num_probes: k, probes of a place.
        num_places: P, places of a row that are probed; None probes all.
        counts: which probes of a token are asked anything; None for all.
    """
    _, weight = ahead(batch, 2)
    if counts is not None:
        weight = weight * counts[..., 0]
    return lay_at(batch, choose(weight, key, num_places), num_probes, counts)


def choose(weight: Float[Array, "B T"], key: Array, num_places: int | None) -> Int[Array, "B P"]:
    """Places of every row, in random order those with weight first.

    Args:
        weight: of what is asked at each place.
        key: PRNG key.
        num_places: how many of a row; None takes all, in order.
    """
    num_rows, size = weight.shape
    if num_places is None or num_places >= size:
        return jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (num_rows, size))
    score = jax.random.uniform(key, (num_rows, size)) + (weight > 0)
    return jax.lax.top_k(score, num_places)[1].astype(jnp.int32)


def lay_at(
    batch: Batch,
    places: Int[Array, "B P"],
    num_probes: int,
    counts: Shaped[Array, "B T k"] | None = None,
) -> Laid:
    """The batch with probes behind these places; a place may be there several times."""
    num_rows, size = batch.tokens.shape
    guesses = [ahead(batch, j + 2) for j in range(num_probes)]
    wanted, weight = (jnp.stack(arrays, -1) for arrays in zip(*guesses, strict=True))
    weight = weight if counts is None else weight * counts

    number = jnp.arange(num_probes, dtype=jnp.int32)
    shape = (num_rows, places.shape[1], num_probes)
    flat = (num_rows, places.shape[1] * num_probes)
    numbers = jnp.broadcast_to(number, shape).reshape(flat)
    where = (ops.taken(batch.positions, places)[..., None] + 1 + number).reshape(flat)
    position = jnp.concatenate([batch.positions, where], axis=1)
    program = MaskProgram(
        cached=jnp.zeros(num_rows, jnp.int32),
        positions=position.astype(jnp.int32),
        num_new=jnp.full(num_rows, position.shape[1], jnp.int32),
        ancestors=masks.pack_ancestors(_sees(batch.segments, places, num_probes)),
        rule="tree",
    )
    return Laid(
        tokens=jnp.concatenate([batch.tokens, numbers], axis=1),
        probe=jnp.concatenate([jnp.zeros((num_rows, size), bool), jnp.ones(flat, bool)], axis=1),
        program=program,
        places=places,
        wanted=ops.taken(wanted, places),
        weight=ops.taken(weight, places),
    )


def filled(laid: Laid, batch: Batch, tokens: Int[Array, "B P k"]) -> Laid:
    """The layout with tokens as its probes."""
    flat = tokens.reshape(len(tokens), -1)
    return dataclasses.replace(laid, tokens=jnp.concatenate([batch.tokens, flat], axis=1))


def distilled(
    target: Target,
    params: Any,
    laid: Laid,
    asked: Float[Array, "B P k D"],
    texts: Float[Array, "B T D"],
    *,
    decay: float,
    temperature: float,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Loss and metrics of probes that should have the target's own law at their places.

    Args:
        target: its functions.
        params: its parameters.
        laid: what the pass was given.
        asked: hidden states of the probes.
        texts: hidden states of the tokens.
        decay: weight of each probe relative to the one before.
        temperature: of the target's law.
    """

    def per_probe(asked, taught, wanted):
        scores = target.logits(params, asked)
        law = jax.nn.softmax(target.logits(params, taught) / temperature)
        return losses.divergence(scores, law), scores.argmax(-1) == wanted

    taught = jax.lax.stop_gradient(laid.later(texts))
    errors, hits = losses.over_tokens(per_probe, asked, taught, laid.wanted)
    rates = losses.per_head(hits, laid.weight)
    metrics = {f"accuracy.{j}": rate for j, rate in enumerate(rates)}
    return combine(losses.per_head(errors, laid.weight), decay), metrics


def combine(errors: Float[Array, "k"], decay: float) -> Float[Array, ""]:
    """The weighted sum of the probes' errors, over their number."""
    return (errors * decay ** jnp.arange(1, len(errors) + 1)).sum() / len(errors)


def _sees(
    segments: Int[Array, "B T"], places: Int[Array, "B P"], num_probes: int
) -> Bool[Array, "B R R"]:
    num_rows, size = segments.shape
    # Every row's place among the tokens, its group of probes and its number; tokens have none.
    slot = jnp.arange(size, dtype=jnp.int32)
    own = jnp.broadcast_to(slot, (num_rows, size))
    place = jnp.concatenate([own, jnp.repeat(places, num_probes, axis=1)], axis=1)
    group = jnp.concatenate(
        [jnp.full(size, -1), jnp.repeat(jnp.arange(places.shape[1]), num_probes)]
    )
    number = jnp.concatenate(
        [jnp.zeros(size, int), jnp.tile(jnp.arange(num_probes), places.shape[1])]
    )
    text = ops.taken(segments, place)
    same_text = text[:, :, None] == text[:, None, :]
    tokens = (group < 0) & (place[:, :, None] >= place[:, None, :]) & same_text
    probes = (group >= 0) & (group[:, None] == group) & (number[:, None] >= number)
    return tokens | probes
