"""The target learns to finish lexical units at pads, through adapters that are merged into it.

A lexical unit is a longest run of tokens to each of which the target as it is gives at least
`min_prob`, of at most k + 1 tokens; other tokens are units of their own. Loss: cross-entropy of k
pads behind the token before a unit on the tokens of the unit but the first, and of the text itself
on every next token, so that the target stays what it is (arXiv:2405.15208: the idea; adapters, the
limit and the sum are ours).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.drafters.lud import check_pad
from jaxdecode.models import lora
from jaxdecode.training import losses, probed
from jaxdecode.training.features import shift
from jaxdecode.training.objective import Export, Objective, Start, ahead, program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        num_draft: k, pads behind a token.
        min_prob: of every token of a unit but single ones.
        pad_token: the token that stands for a pad.
        rank: of the adapters.
        num_places: places of a text that get pads in one step; None gives them to all.
    """

    num_draft: int = 4
    min_prob: float = 0.9
    pad_token: int = 0
    rank: int = 16
    num_places: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_draft", self.num_draft, low=1, high=64)
        checks.number("min_prob", self.min_prob, "from 0 to 1", lambda x: 0 <= x <= 1)
        checks.integer("pad_token", self.pad_token, low=0)
        checks.integer("rank", self.rank, low=1, high=1024)
        if self.num_places is not None:
            checks.integer("num_places", self.num_places, low=1)


def make(config: Config, models: Models) -> Objective:
    """The objective of the target itself."""
    target, k = models.target.target, config.num_draft
    check_pad(config.pad_token, models.target.config.vocab_size)

    def init(key, weights, texts):
        del texts
        return Start(lora.init(key, weights.target, config.rank))

    def errors_of(params, hidden, wanted):
        def per_token(hidden, wanted):
            scores = target.logits(params, hidden)
            return losses.cross_entropy(scores, wanted), scores.argmax(-1) == wanted

        return losses.over_tokens(per_token, hidden, wanted)

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen = jax.lax.stop_gradient(target_params)
        following, weight = ahead(batch, 1)
        plain = target.forward(frozen, batch.tokens, program(batch), None).hidden
        surprise, _ = errors_of(frozen, plain, following)
        place = places(jnp.exp(-surprise), batch.segments, config.min_prob, k + 1)
        counts = jnp.stack([shift(place, j + 2) == j + 1 for j in range(k)], axis=-1)
        laid = probed.lay(batch, key, num_probes=k, num_places=config.num_places, counts=counts)
        tokens = jnp.where(laid.probe, config.pad_token, laid.tokens)
        adapted = lora.attach(frozen, params)
        texts, pads = laid.split(target.forward(adapted, tokens, laid.program, None).hidden)
        unit_errors, hits = errors_of(adapted, pads, laid.wanted)
        text_errors, right = errors_of(adapted, texts, following)
        units, text = (
            losses.weighted_mean(unit_errors, laid.weight),
            losses.weighted_mean(text_errors, weight),
        )
        rates = losses.per_head(hits, laid.weight)
        metrics = {f"accuracy.{j}": rate for j, rate in enumerate(rates)}
        metrics |= {"units": units, "text": text, "accuracy": losses.weighted_mean(right, weight)}
        return units + text, metrics

    def export(params, target):
        return Export(target=lora.merge(target, params))

    return Objective(init=init, loss=loss, export=export)


def places(
    next_prob: Float[Array, "B T"], segments: Int[Array, "B T"], min_prob: float, longest: int
) -> Int[Array, "B T"]:
    """Place of every token in its unit, from 0.

    Args:
        next_prob: probability of the token after each.
        segments: texts of the rows; none of their units is in two.
        min_prob: of a unit's tokens.
        longest: most tokens of a unit.
    """
    before = jnp.pad(next_prob[:, :-1], ((0, 0), (1, 0)))
    fresh = segments != jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
    return jax.vmap(lambda p, fresh: _places(p >= min_prob, fresh, longest))(before, fresh)


def _places(sure: Bool[Array, "T"], fresh: Bool[Array, "T"], longest: int) -> Int[Array, "T"]:
    def step(carry, token):
        place, was_sure = carry
        sure, fresh = token
        ends = fresh | ~sure | ~was_sure | (place + 1 == longest)
        place = jnp.where(ends, 0, place + 1)
        return (place, sure), place

    start = jnp.int32(0), jnp.bool_(False)
    return jax.lax.scan(step, start, (sure, fresh))[1]
