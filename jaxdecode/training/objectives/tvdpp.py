"""TVD++: a draft model by rewards for tokens to which it gives less than the target does.

A token x is rewarded, r(x) = 1, where the target's probability p(x) is greater than the draft
model's q(x). Loss, whose gradient is that of a policy that is paid so:

    -E_{x ~ q}[A(x) log q(x)],    A = (r - mean) / deviation

with A held fixed, and mean and deviation of r over the vocabulary and the tokens that count in the
batch (arXiv:2403.00858; over which set exactly is our reading). Without A's mean and deviation it
would be the total variation 1 - sum min(p, q), the chance that speculative sampling refuses a
draft; taken over the whole vocabulary the mean has no effect on the gradient, because scores of a
law add up to nothing, so "exact" is total variation over the deviation. "sampled" draws x from q,
as the paper does, where the mean lowers the variance.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.errors import InputError
from jaxdecode.training import losses, whole
from jaxdecode.training.objective import Objective, ahead


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        expectation: over x ~ q: "exact" over the whole vocabulary, or "sampled".
        num_samples: tokens drawn at each place; only "sampled" draws some.
    """

    expectation: Literal["exact", "sampled"] = "exact"
    num_samples: int = 1

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if self.expectation not in ("exact", "sampled"):
            raise InputError(
                f"expectation={self.expectation!r} is not known; use 'exact' or 'sampled'."
            )
        checks.integer("num_samples", self.num_samples, low=1)


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the draft model."""
    assert models.draft is not None
    model = models.draft

    def loss(params, target_params, batch, key, moment):
        del moment
        _, weight = ahead(batch, 1)
        scores = whole.both_scores(models, params, target_params)
        keys = jax.random.key_data(jax.random.split(key, weight.shape))

        each = jax.vmap(functools.partial(place, config=config))

        def per_token(own, taught, keys):
            return each(*scores(own, taught), keys)

        own = whole.states_of(model, params, batch)
        taught = jax.lax.stop_gradient(whole.states_of(models.target, target_params, batch))
        # A place's scores are held several times over.
        parts = losses.over_tokens(per_token, own, taught, keys, chunk=losses.CHUNK // 2)
        value = combine(parts, weight)
        return value, {"overlap": losses.weighted_mean(parts["overlap"], weight)}

    return Objective(init=whole.of_draft, loss=loss, export=whole.as_draft)


def place(
    drafted: Float[Array, "V"], target: Float[Array, "V"], key: Array, config: Config
) -> dict[str, Float[Array, ""]]:
    """What one place contributes.

    Args:
        drafted: scores of the draft model.
        target: scores of the target.
        key: data of the PRNG key of the place.
        config: how the expectation is taken.

    Returns:
        Terms whose gradients are those of E[log q] ("all") and of E[r log q] ("paid"); the "share"
        of the vocabulary that is rewarded; and the "overlap" of the laws, sum of min(p, q).
    """
    own, taught = jax.nn.softmax(drafted), jax.nn.softmax(target)
    reward = jax.lax.stop_gradient((taught > own).astype(jnp.float32))
    if config.expectation == "exact":
        # The gradient of q is that of log q times q.
        every, paid = own.sum(), (own * reward).sum()
    else:
        shape = (config.num_samples,)
        drawn = jax.random.categorical(jax.random.wrap_key_data(key), drafted, shape=shape)
        scores = jax.nn.log_softmax(drafted)[drawn]
        every, paid = scores.mean(), (scores * reward[drawn]).mean()
    overlap = jnp.minimum(own, taught).sum()
    return {"all": every, "paid": paid, "share": reward.mean(), "overlap": overlap}


def combine(parts: dict[str, Float[Array, "B T"]], weight: Float[Array, "B T"]) -> Float[Array, ""]:
    """The loss, from what the places contribute."""
    every, paid, mean = (losses.weighted_mean(parts[x], weight) for x in ("all", "paid", "share"))
    mean = jax.lax.stop_gradient(mean)
    # Of zeros and ones. Without any reward there is nothing to learn, and no deviation.
    deviation = jnp.sqrt(jnp.maximum(mean * (1 - mean), 0.0)) + 1e-6
    return (mean * every - paid) / deviation
