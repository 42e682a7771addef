"""NeoDiff learns to tell texts from noise, each token with a noise level of its own.

Every text has a time t, spread evenly over the rows of a batch, and every token of its answer a
level, drawn around a mean that rises with t (`continuous/schedules.py`). Loss, arXiv:2505.22165
section 3:

    ||said - vector||^2 / D + cross-entropy of the token by what was said     of every token
    + length_weight * cross-entropy of the length                             of every text
    + (level that was predicted - level that would suit)^2 / last level^2     of every token

The level that would suit goes by rank: the tokens of a text in order of their loss get the levels
that lie at their ranks among those that are drawn at t, so hard tokens stay longer under noise. In
half of the texts what was said without any belief is believed first.

What is written is the last answer of a text, from all that stands before it; at least the first
token is given. Tokens past `shape.max_length` of an answer are not learned. Of the target only the
vocabulary is used.

Differs from the authors' code: the ranks go by the sum of both losses of a token, which are not
changed on the way; the last level, and not level 1, stands at the end of time; whether a text is
believed first is drawn for each.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdecode import checks
from jaxdecode.continuous import schedules
from jaxdecode.core.protocols import Models
from jaxdecode.heads import neodiff as net
from jaxdecode.models.bidirectional import Side
from jaxdecode.training import answers, losses
from jaxdecode.training.answers import Parts
from jaxdecode.training.objective import Batch, Objective, Start, heads_only
from jaxdecode.training.schedules import antithetic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        spread: standard deviation of levels over their mean; 0 gives all tokens of a text one.
        smoothing: share of the cross-entropy of tokens that is the mean over all tokens.
        length_weight: of the loss of lengths.
        believed: share of texts in which what was said is believed.
    """

    spread: float = 1.0
    smoothing: float = 0.1
    length_weight: float = 0.1
    believed: float = 0.5

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        for name in ("spread", "length_weight"):
            checks.number(name, getattr(self, name), "at least 0", lambda x: x >= 0)
        checks.number("smoothing", self.smoothing, "from 0 to below 1", lambda x: 0 <= x < 1)
        checks.number("believed", self.believed, "from 0 to 1", lambda x: 0 <= x <= 1)


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the heads."""
    assert models.heads is not None
    shape: net.Shape = models.heads.shape
    model, last = models.target, shape.num_levels - 1.0

    def init(key, weights, texts):
        del texts
        return Start(net.init(shape, model.config, key, weights.target))

    def loss(params, target_params, batch, key, moment):
        del target_params, moment
        parts = answers.parts_of(batch, shape.max_length)
        vectors = net.table(shape, params)
        memory, beside = _read(shape, params, batch, parts)
        time, level, keys = _noised(key, batch, config.spread, shape.num_levels)
        signal = schedules.root(level / last)
        noise = shape.noise_scale * jax.random.normal(keys[0], vectors[batch.tokens].shape)
        clean = vectors[batch.tokens]
        sees = parts.same & parts.answer[:, None, :]
        own = Side(schedules.diffuse(clean, noise, signal), parts.places, sees)
        said = _said(shape, params, own, level, beside, _chosen(keys[1], batch, config.believed))

        def per_token(said, wanted):
            scores = net.scores(shape, vectors, said)
            error = losses.cross_entropy(scores, wanted, config.smoothing)
            return error, scores.argmax(-1) == wanted

        error, hits = losses.over_tokens(per_token, said, batch.tokens)
        error += jnp.square(said - clean).mean(-1)
        suits = _suiting(error, parts, time, shape.num_levels, config.spread)
        still = jax.lax.stop_gradient(own._replace(x=said))
        beside = jax.lax.stop_gradient(beside)
        guess = net.levels(shape, params, still, time, beside)
        weight = parts.answer.astype(jnp.float32)
        judged = losses.weighted_mean(jnp.square((guess - suits) / last), weight)
        lengths = _lengths(shape, params, memory, parts, batch)
        metrics = {
            "accuracy": losses.weighted_mean(hits.astype(jnp.float32), weight),
            "length_loss": lengths,
            "level_error": judged,
        }
        whole = losses.weighted_mean(error, weight) + config.length_weight * lengths + judged
        return whole, metrics

    return Objective(init=init, loss=loss, export=heads_only)


def _read(shape: net.Shape, params: Any, batch: Batch, parts: Parts) -> tuple[Array, Side]:
    """States of what is given, and how answers see them."""
    sees = parts.same & parts.source[:, None, :]
    memory = net.encode(shape, params, batch.tokens, batch.positions, sees)
    return memory, Side(memory, batch.positions, sees)


def _noised(
    key: Array, batch: Batch, spread: float, num_levels: int
) -> tuple[Float[Array, "B T"], Float[Array, "B T"], Array]:
    """Time of each place's text, level of each place, and keys for what else is drawn."""
    clock, draw, *rest = jax.random.split(key, 4)
    time = _per_text(antithetic(clock, *batch.tokens.shape), batch)
    return time, schedules.draw_levels(draw, time, num_levels, spread), jnp.stack(rest)


def _per_text(values: Float[Array, "B T"], batch: Batch) -> Float[Array, "B T"]:
    """A value for each text, at all its places."""
    return jnp.take_along_axis(values, jnp.maximum(batch.segments - 1, 0), axis=1)


def _chosen(key: Array, batch: Batch, share: float) -> Bool[Array, "B T"]:
    """Texts that are drawn with a chance."""
    return _per_text(jax.random.uniform(key, batch.tokens.shape), batch) < share


def _said(shape, params, own, level, beside, believes) -> Float[Array, "B T D"]:
    """What is said of the vectors; of texts that believe, after it was said once before."""
    nothing = jnp.zeros_like(own.x)
    first = net.denoise(shape, params, own, nothing, level, beside)
    first = jnp.where(believes[..., None], jax.lax.stop_gradient(first), nothing)
    return net.denoise(shape, params, own, first, level, beside)


def _suiting(
    error: Array, parts: Parts, time: Array, num_levels: int, spread: float
) -> Float[Array, "B T"]:
    """The level at each token's rank among the tokens of its answer, by their loss."""
    error = jax.lax.stop_gradient(error)
    before = (parts.places[:, None, :] < parts.places[:, :, None]).astype(bool)
    easier = (error[:, None, :] < error[:, :, None]) | (
        (error[:, None, :] == error[:, :, None]) & before
    )
    rank = (easier & parts.same & parts.answer[:, None, :]).sum(-1)
    quantile = (rank + 0.5) / jnp.maximum(parts.length, 1)
    return schedules.level_at(time, quantile, num_levels, spread)


def _lengths(shape, params, memory, parts, batch) -> Float[Array, ""]:
    """Cross-entropy of the lengths of answers, by the state of each text's first token."""
    first = (batch.segments > 0) & (batch.positions == 0) & (parts.length > 0)
    wanted = jnp.clip(parts.length - 1, 0, shape.max_length - 1)
    error = losses.cross_entropy(net.lengths(shape, params, memory), wanted)
    return losses.weighted_mean(error, first.astype(jnp.float32))
