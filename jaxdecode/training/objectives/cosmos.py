"""Cosmos learns a coder of texts into a few vectors, and then to tell these from noise.

First part of the run, the coder, on answers as the target reads them alone:

    cross-entropy of the tokens + feature_weight * ||states said - states||^2 / D
    + cross-entropy of whether there is a token, at every place, up to some behind the end

So that near vectors say near texts, some texts are disturbed: states are left out or get noise
before they are pressed, vectors get noise, and numbers of them are left out. Beside it the mean and
the scale of the vectors are fitted. Then the coder stays, as far as the optimizer's momentum lets
it, and the denoiser learns: ||said - vectors||^2 / d of scaled vectors under the noise of a time,
beside the target's states of the prompt; in half of the texts what was said is believed first.

One text per row: set data.pack to false. What is written is the last answer of a text, at least the
first token is given; tokens of an answer past `shape.max_length` are not learned. Both parts are
measured on held-out texts, undisturbed. Source: arXiv:2506.21170, of which constants were not
found: they are ours.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.continuous import schedules
from jaxdecode.core.protocols import Models
from jaxdecode.heads import cosmos as net
from jaxdecode.training import answers, losses
from jaxdecode.training.features import known
from jaxdecode.training.objective import Objective, Start, heads_only
from jaxdecode.training.schedules import antithetic

# Places behind the end of a text that learn that there is no token.
BEHIND = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        coder: part of the run that the coder learns in.
        feature_weight: of the distance of states.
        disturbed: share of texts that are disturbed.
        left_out: share of states that are left out of these.
        noise: largest standard deviation of the noise on states, and on vectors; each text has its
            own, up to that.
        dropped: share of the vectors' numbers that are left out.
        believed: share of texts in which what was said is believed.
    """

    coder: float = 0.5
    feature_weight: float = 1.0
    disturbed: float = 0.5
    left_out: float = 0.3
    noise: float = 0.7
    dropped: float = 0.1
    believed: float = 0.5

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("coder", self.coder, "between 0 and 1", lambda x: 0 < x < 1)
        for name in ("feature_weight", "noise"):
            checks.number(name, getattr(self, name), "at least 0", lambda x: x >= 0)
        for name in ("disturbed", "believed"):
            checks.number(name, getattr(self, name), "from 0 to 1", lambda x: 0 <= x <= 1)
        for name in ("left_out", "dropped"):
            value = getattr(self, name)
            checks.number(name, value, "from 0 to below 1", lambda x: 0 <= x < 1)


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the heads."""
    assert models.heads is not None
    shape: net.Shape = models.heads.shape
    model = models.target

    def init(key, weights, texts):
        answers.check_alone("cosmos", texts)
        return Start(net.init(shape, model.config, key, weights.target))

    def features(target_params, batch):
        return answers.apart(model, target_params, batch, shape.max_length)[0]

    def reads(target_params, batch):
        states = net.features(known(batch, features, target_params))
        return answers.aligned(batch, states, states, shape.max_length)

    def coder(params, target_params, read, key, share):
        return _coder(config, shape, model, params, target_params, read, key, share)

    def denoiser(params, read, key):
        return _denoiser(config, shape, params, read, key)

    def loss(params, target_params, batch, key, moment):
        read = reads(target_params, batch)
        return jax.lax.cond(
            moment.share < config.coder,
            lambda: coder(params, target_params, read, key, config.disturbed),
            lambda: (denoiser(params, read, key), {"accuracy": jnp.float32(0), "coder": 0.0}),
        )

    def judge(params, target_params, batch, key, moment):
        del moment
        read = reads(target_params, batch)
        error, metrics = coder(params, target_params, read, key, 0.0)
        return error + denoiser(params, read, key), metrics

    return Objective(init=init, loss=loss, export=heads_only, judge=judge, features=features)


def _coder(config, shape, model, params, target_params, read, key, share):
    """Loss and metrics of the coder; a share of the texts is disturbed."""
    chosen, *keys = jax.random.split(key, 5)
    count = read.real.shape[0]
    which = jax.random.uniform(chosen, (count, 1, 1)) < share
    states = jnp.where(which, _disturb(config, keys[0], keys[1], read.states), read.states)
    clean = net.compress(shape, params, states, read.places, read.real)
    latents = jnp.where(which, _blur(config, keys[2], keys[3], clean), clean)
    width = read.real.shape[1]
    said, code, exists = net.expand(shape, params, latents, width)

    def per_token(code, wanted):
        scores = model.target.logits(jax.lax.stop_gradient(target_params), code)
        scores = scores.astype(jnp.float32)
        return losses.cross_entropy(scores, wanted), scores.argmax(-1) == wanted

    error, hits = losses.over_tokens(per_token, code, read.tokens)
    distance = jnp.square(said - read.states).mean(-1)
    weight = read.real.astype(jnp.float32)
    ends = jax.nn.softplus(jnp.where(read.real, -exists, exists))
    near = (read.places < read.real.sum(1)[:, None] + BEHIND) & (read.real[:, :1])
    fitted = net.surprise(shape, params, jax.lax.stop_gradient(clean)).mean()
    total = losses.weighted_mean(error + config.feature_weight * distance, weight)
    total += losses.weighted_mean(ends, near.astype(jnp.float32)) + fitted
    accuracy = losses.weighted_mean(hits.astype(jnp.float32), weight)
    return total, {"accuracy": accuracy, "coder": 1.0}


def _disturb(config, leave, add, states):
    """States of which some are left out and the others have noise."""
    left = jax.random.uniform(leave, states.shape[:2])[..., None] < config.left_out
    return jnp.where(left, 0.0, _noisy(add, states, config.noise))


def _blur(config, leave, add, latents):
    """Vectors with noise, of which some numbers are left out."""
    left = jax.random.uniform(leave, latents.shape) < config.dropped
    return jnp.where(left, 0.0, _noisy(add, latents, config.noise))


def _noisy(key, vectors, most):
    """Vectors with normal noise; how much is drawn for each text."""
    level, draw = jax.random.split(key)
    scale = most * jax.random.uniform(level, (vectors.shape[0], 1, 1))
    return vectors + scale * jax.random.normal(draw, vectors.shape)


def _denoiser(config, shape, params, read, key) -> Float[Array, ""]:
    """Distance of what is said from the scaled vectors of the coder, which does not learn."""
    clock, draw, coin = jax.random.split(key, 3)
    still = jax.lax.stop_gradient(params)
    latents = net.compress(shape, still, read.states, read.places, read.real)
    clean = net.standard(shape, still, latents)
    time = antithetic(clock, clean.shape[0], 1)[:, 0]
    signal = schedules.tangent(time, shape.hardness)[:, None]
    noisy = schedules.diffuse(clean, jax.random.normal(draw, clean.shape), signal)
    nothing = jnp.zeros_like(clean)
    first = net.denoise(shape, params, noisy, nothing, time, read.prompt)
    believes = jax.random.uniform(coin, (clean.shape[0], 1, 1)) < config.believed
    first = jnp.where(believes, jax.lax.stop_gradient(first), nothing)
    said = net.denoise(shape, params, noisy, first, time, read.prompt)
    error = jnp.square(said - clean).mean((-2, -1))
    return losses.weighted_mean(error, read.real[:, 0].astype(jnp.float32))
