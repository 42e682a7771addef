"""Jacobi consistency: from any guess on the way to the fixed point, the target says the same.

Jacobi decoding corrects a window of guesses until nothing changes. Its iterates at places of a text
are collected with the target as it was, beginning as the method `jacobi` begins. One of them, y, is
drawn; the trained target reads it and the fixed point y*, which is the target's own text. Loss:

    mean over i of KL(stop-gradient p(. | y*_<=i) || p(. | y_<=i)) + causal * CE on the text

over the places i of the window from the first on at which y differs from y*, cross-entropy with
smoothed labels (arXiv:2403.00835). With `max_deviation`, the text itself takes the place of y*
wherever more than that share of the window differs from it (mixed labels, arXiv:2506.13725).

Cost: a pass of the frozen target over T + P W rows per iteration, as many as it takes, at most W;
and one pass of the trained one over T + 2 P W. Differs from the papers: iterates are made on the
way, not beforehand, and new places are guessed as decoding guesses them, not at random.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core import ops
from jaxdecode.core.protocols import Models, Target
from jaxdecode.drafters import jacobi
from jaxdecode.training import losses, probed, whole
from jaxdecode.training.objective import Batch, Objective, ahead


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        window: places that are guessed at once; decoding should take as many.
        num_places: windows of a row in one step; None begins one at every token.
        causal: weight of the cross-entropy on the text.
        smoothing: share of its labels that is spread over all tokens.
        max_deviation: share of a window from which on the text is the label, not the fixed point;
            None never takes the text.
    """

    window: int = 8
    num_places: int | None = None
    causal: float = 10.0
    smoothing: float = 0.1
    max_deviation: float | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("window", self.window, low=1)
        if self.num_places is not None:
            checks.integer("num_places", self.num_places, low=1)
        checks.number("causal", self.causal, "at least 0", lambda x: x >= 0)
        checks.number("smoothing", self.smoothing, "from 0 to below 1", lambda x: 0 <= x < 1)
        if self.max_deviation is not None:
            deviation = self.max_deviation
            checks.number("max_deviation", deviation, "from 0 to 1", lambda x: 0 <= x <= 1)


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the target."""
    model, window = models.target, config.window
    target = model.target

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen = jax.lax.stop_gradient(target_params)
        where, which = jax.random.split(key)
        places = probed.choose(ahead(batch, 2)[1], where, config.num_places)
        laid = probed.lay_at(batch, places, window)
        iterates = trajectory(target, frozen, batch, laid)
        guess, left = draw(iterates, which)
        label = iterates[-1]
        if config.max_deviation is not None:
            label = mixed(label, batch, laid, config.max_deviation)

        both = probed.lay_at(batch, jnp.concatenate([places, places], axis=1), window)
        both = probed.filled(both, batch, jnp.concatenate([guess, label], axis=1))
        hidden = target.forward(params, both.tokens, both.program, None).hidden
        texts, read = both.split(hidden)
        asked, taught = jnp.split(read, 2, axis=1)

        def apart(asked, taught):
            law = jax.nn.softmax(target.logits(params, taught))
            return losses.divergence(target.logits(params, asked), jax.lax.stop_gradient(law))

        distance = losses.over_tokens(apart, asked, taught, chunk=max(1, losses.CHUNK // window))
        consistency = losses.weighted_mean(distance, differs(guess, label) * laid.weight)
        error, accuracy = _causal(target, params, texts, batch, config.smoothing)
        metrics = {
            "consistency": consistency,
            "causal": error,
            "accuracy": accuracy,
            "iterations": losses.weighted_mean(left, laid.weight[..., 0]),
        }
        return consistency + config.causal * error, metrics

    return Objective(init=whole.of_target, loss=loss, export=whole.as_target)


def first_guesses(batch: Batch, laid: probed.Laid) -> Int[Array, "B P W"]:
    """The guesses of `jacobi` before its first step at each place."""
    blank = jnp.zeros(laid.wanted.shape[2], jnp.int32)

    def row(tokens, segments, places):
        def at(place):
            own = jnp.where(segments == segments[place], tokens, -1)
            return jacobi.follow(own, place, blank, jnp.int32(0))

        return jax.vmap(at)(places)

    return jax.vmap(row)(batch.tokens, batch.segments, laid.places)


def trajectory(
    target: Target, params: Any, batch: Batch, laid: probed.Laid
) -> Int[Array, "J B P W"]:
    """The windows of guesses after 0 to W greedy iterations; the last is the fixed point."""
    window = laid.wanted.shape[2]

    def says(before):
        return target.logits(params, before).argmax(-1).astype(jnp.int32)

    def correct(guesses):
        given = probed.filled(laid, batch, guesses)
        texts, probes = laid.split(target.forward(params, given.tokens, given.program, None).hidden)
        pending = ops.taken(texts, laid.places)
        before = jnp.concatenate([pending[:, :, None], probes[:, :, :-1]], axis=2)
        return losses.over_tokens(says, before, chunk=max(1, losses.CHUNK // window))

    def body(carry):
        i, iterates = carry
        later = jnp.arange(window + 1)[:, None, None, None] > i
        return i + 1, jnp.where(later, correct(iterates[i]), iterates)

    def moves(carry):
        i, iterates = carry
        return (i < window) & ((i == 0) | (iterates[i] != iterates[i - 1]).any())

    first = first_guesses(batch, laid)
    start = jnp.broadcast_to(first, (window + 1, *first.shape))
    return jax.lax.while_loop(moves, body, (jnp.int32(0), start))[1]


def draw(
    iterates: Int[Array, "J B P W"], key: Array
) -> tuple[Int[Array, "B P W"], Int[Array, "B P"]]:
    """Of each window one iterate before the fixed point, and how many there are."""
    left = (iterates != iterates[-1]).any(-1).sum(0)
    index = jnp.floor(jax.random.uniform(key, left.shape) * left).astype(jnp.int32)
    return jnp.take_along_axis(iterates, index[None, ..., None], axis=0)[0], left


def mixed(
    fixed: Int[Array, "B P W"], batch: Batch, laid: probed.Laid, most: float
) -> Int[Array, "B P W"]:
    """The fixed points, but the text where they are too far from it."""
    window = fixed.shape[2]
    pairs = [ahead(batch, i + 1) for i in range(window)]
    tokens, weight = (jnp.stack(arrays, -1) for arrays in zip(*pairs, strict=True))
    text, weight = (ops.taken(array, laid.places) for array in (tokens, weight))
    wrong = ((fixed != text) * weight).sum(-1) / jnp.maximum(weight.sum(-1), 1e-9)
    # Past the text's end there is nothing to take.
    return jnp.where((wrong > most)[..., None] & (weight > 0), text, fixed)


def differs(guess: Int[Array, "*B W"], label: Int[Array, "*B W"]) -> Bool[Array, "*B W"]:
    """Places from the first on at which a guess is not the label."""
    return jnp.cumsum(guess != label, axis=-1) > 0


def _causal(
    target: Target, params: Any, texts: Float[Array, "B T D"], batch: Batch, smoothing: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    wanted, weight = ahead(batch, 1)

    def per_token(hidden, wanted):
        scores = target.logits(params, hidden)
        return losses.cross_entropy(scores, wanted, smoothing), scores.argmax(-1) == wanted

    error, accuracy = losses.over_tokens(per_token, texts, wanted)
    return losses.weighted_mean(error, weight), losses.weighted_mean(accuracy, weight)
