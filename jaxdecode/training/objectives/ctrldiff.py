"""A classifier learns which attribute a text has, also while some of it is undecided.

A text says what it has in its prompt, by the first token of it that is one of `labels`; texts
without such a token are left out. A share of the answer, uniform over (0, 1), is masked, and the
label is too; the frozen target is asked once. Masked tokens have the mean features under the
target's law of them, others their own. Loss: cross-entropy of the class, averaged over the texts.

So what is read is what decoding shows (`verifiers/ctrldiff.py`), where nobody names the attribute.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.errors import InputError
from jaxdecode.heads import ctrldiff
from jaxdecode.training import denoising, losses, replays, schedules
from jaxdecode.training.objective import Batch, Objective, Start, heads_only


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        labels: token of each class, as many as `shape.num_classes`.
    """

    labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses tokens that are none, and labels that are there twice."""
        for label in self.labels:
            checks.integer("labels", label, low=0)
        if len(set(self.labels)) < len(self.labels):
            raise InputError(f"labels={self.labels!r} has a token twice; name one per class.")


def make(config: Config, models: Models) -> Objective:
    """The objective of a classifier for a frozen target.

    Raises:
        InputError: the target does not fill slots. At the beginning: labels are not as many as
            classes.
    """
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    asked = denoising.own_setting(model)

    def init(key, weights, texts):
        del texts
        if len(config.labels) != shape.num_classes:
            raise InputError(
                f"objective.labels names {len(config.labels)} tokens, but shape.num_classes is "
                f"{shape.num_classes}: name one token per class."
            )
        return Start(ctrldiff.init(shape, model.config, key, weights.target))

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen = jax.lax.stop_gradient(target_params)
        is_label, wanted = classes(config.labels, batch)
        level, mask = jax.random.split(key)
        weight = denoising.learned(batch, asked.denoiser.shifted)
        share = schedules.antithetic(level, *batch.tokens.shape)
        share = jnp.take_along_axis(share, denoising.groups(batch), axis=1)
        masked = denoising.drawn(mask, share, weight)
        hidden = denoising.states(asked, frozen, batch, masked | is_label)
        found = features(asked, frozen, params, hidden, batch.tokens, masked)
        mean = text_means(found, batch)
        laws = ctrldiff.log_probs(params, mean)
        counts = each_once(batch) * (wanted >= 0)
        right = jnp.take_along_axis(laws, jnp.maximum(wanted, 0)[..., None], axis=-1)[..., 0]
        metrics = {
            "accuracy": losses.weighted_mean(laws.argmax(-1) == wanted, counts),
            "labelled": losses.weighted_mean(wanted >= 0, each_once(batch)),
        }
        return losses.weighted_mean(-right, counts), metrics

    return Objective(init=init, loss=loss, export=heads_only)


def classes(labels: tuple[int, ...], batch: Batch) -> tuple[Bool[Array, "B T"], Int[Array, "B T"]]:
    """The label of every text, as a token of its prompt and as the class of all its tokens.

    Args:
        labels: token of each class.
        batch: texts.

    Returns:
        Which token is the label of its text; the class of each token's text, -1 without one.
    """
    prompt = (batch.segments > 0) & (batch.weight == 0)
    hits = (batch.tokens[..., None] == jnp.asarray(labels, jnp.int32)) & prompt[..., None]
    there, number = hits.any(-1), hits.argmax(-1)
    past = batch.tokens.shape[1]
    place = jnp.where(there, jnp.arange(past), past)
    first = replays.per_block(jax.ops.segment_min, place, batch.segments)
    is_label = there & (place == first)
    own = jnp.where(is_label, number, -1)
    return is_label, replays.per_block(jax.ops.segment_max, own, batch.segments)


def features(
    asked: denoising.Setting,
    target_params: Any,
    params: dict[str, Any],
    hidden: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    masked: Bool[Array, "B T"],
) -> Float[Array, "B T F"]:
    """Features of tokens; of masked ones their mean under the target's law."""
    table = params["table"].astype(jnp.float32)

    def per_token(states, tokens, masked):
        law = jax.nn.softmax(denoising.scores(asked, target_params, states))
        return jnp.where(masked[:, None], law @ table, table[tokens])

    return losses.over_tokens(per_token, hidden, tokens, masked)


def text_means(values: Float[Array, "B T F"], batch: Batch) -> Float[Array, "B T F"]:
    """Means over the learned tokens of a text, given to all its tokens."""
    learned = (batch.weight > 0)[..., None]
    totals = replays.per_block(jax.ops.segment_sum, values * learned, batch.segments)
    return totals / jnp.maximum(_counts(batch), 1.0)[..., None]


def each_once(batch: Batch) -> Float[Array, "B T"]:
    """Weights of tokens with which every text that has a learned one counts as 1."""
    return (batch.weight > 0) / jnp.maximum(_counts(batch), 1.0)


def _counts(batch: Batch) -> Float[Array, "B T"]:
    learned = (batch.weight > 0).astype(jnp.float32)
    return replays.per_block(jax.ops.segment_sum, learned, batch.segments)
