"""The judge head learns to tell the tokens of good answers from mistakes.

Good are the tokens of the texts that count. A mistake is made in place of one: drawn from the
target's own law, flattened by `temperature`, among the tokens that it finds less than `unlikely`
times as likely as its best; what a poor draft would say. It is a probe behind the text, so it
spoils the states of no other token. Loss: cross-entropy of right and wrong, each class weighing
half (arXiv:2501.19309). The target is frozen.

Differs from the paper, whose head learns from answers in which people marked the mistakes; and its
states, which the target's last norm has scaled, are not standardised once more.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks
from jaxdecode.core import ops
from jaxdecode.core.protocols import Models
from jaxdecode.heads import judge
from jaxdecode.training import losses, probed, whole
from jaxdecode.training.objective import Objective, Start, ahead, heads_only


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        num_places: mistakes in a row in one step; None makes one for every token.
        temperature: of the law that mistakes are drawn from.
        unlikely: a mistake is at most so likely as this times the target's best token.
    """

    num_places: int | None = None
    temperature: float = 2.0
    unlikely: float = 0.1

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if self.num_places is not None:
            checks.integer("num_places", self.num_places, low=1)
        checks.number("temperature", self.temperature, "above 0", lambda x: x > 0)
        checks.number("unlikely", self.unlikely, "above 0 and below 1", lambda x: 0 < x < 1)


def make(config: Config, models: Models) -> Objective:
    """The objective of a head on a frozen target."""
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    target = model.target

    def init(key, weights, texts):
        del texts
        return Start(judge.init(shape, model.config, key, weights.target))

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen = jax.lax.stop_gradient(target_params)
        where, what = jax.random.split(key)
        laid = probed.lay_at(batch, probed.choose(ahead(batch, 2)[1], where, config.num_places), 1)
        said, counts = (ops.taken(array, laid.places) for array in ahead(batch, 1))
        before = ops.taken(whole.states_of(model, frozen, batch), laid.places)
        keys = jax.random.key_data(jax.random.split(what, said.shape))

        each = jax.vmap(functools.partial(mistake, config=config))

        def wrong(hidden, said, keys):
            return each(target.logits(frozen, hidden), said, keys)

        drawn = losses.over_tokens(wrong, before, said, keys)
        laid = probed.filled(laid, batch, drawn[..., None])
        hidden = target.forward(frozen, laid.tokens, laid.program, None).hidden
        texts, mistakes = laid.split(hidden)
        good = judge.scores(params, texts)
        bad = judge.scores(params, mistakes)[..., 0]
        metrics = {
            "accuracy.right": losses.weighted_mean(good > 0, batch.weight),
            "accuracy.wrong": losses.weighted_mean(bad < 0, counts),
        }
        return balanced(good, batch.weight, bad, counts), metrics

    return Objective(init=init, loss=loss, export=heads_only)


def mistake(
    scores: Float[Array, "V"], said: Int[Array, ""], key: Array, config: Config
) -> Int[Array, ""]:
    """A token that would be wrong here.

    Args:
        scores: of the target.
        said: what the text says.
        key: data of the PRNG key.
        config: which tokens are wrong, and how they are drawn.
    """
    unlikely = scores < scores.max() + jnp.log(config.unlikely)
    wrong = unlikely.at[said].set(False)
    # Where the target finds all alike, anything but the text's own.
    wrong = jnp.where(wrong.any(), wrong, jnp.arange(len(scores)) != said)
    allowed = jnp.where(wrong, scores / config.temperature, -jnp.inf)
    return jax.random.categorical(jax.random.wrap_key_data(key), allowed).astype(jnp.int32)


def balanced(
    good: Float[Array, "*B"],
    good_weight: Float[Array, "*B"],
    bad: Float[Array, "*C"],
    bad_weight: Float[Array, "*C"],
) -> Float[Array, ""]:
    """Cross-entropy of log-odds of right and of wrong tokens, each class weighing half."""
    right = losses.weighted_mean(jax.nn.softplus(-good), good_weight)
    return 0.5 * (right + losses.weighted_mean(jax.nn.softplus(bad), bad_weight))
