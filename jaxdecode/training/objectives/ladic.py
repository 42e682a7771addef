"""LaDiC learns to tell a caption's vectors from noise, beside what it is about, and to read them.

A text's vectors are the frozen target's states of its answer alone, half way up, scaled by
statistics of all texts that are taken once, before training. Every text has a level of noise,
spread evenly over the rows of a batch. Loss, arXiv:2404.10763 and the authors' code:

    mean over places of ||said - vector||
    + read_weight * cross-entropy of the caption as read from what is said
    + cross-entropy of the caption as read from the vectors themselves

A caption as read is its tokens, and at every place whether there is one. In half of the texts what
was said is believed first; a tenth of the texts is learned beside zeros, as guidance asks.

One text per row: set data.pack to false. What is written is the last answer of a text, from the
target's states of what stands before it; tokens past `shape.max_length` are not learned.

Differs from the authors' code: the reader is trained, hence the last part of the loss.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.continuous import schedules
from jaxdecode.core.protocols import Model, Models
from jaxdecode.heads import cosmos
from jaxdecode.heads import ladic as net
from jaxdecode.models import bidirectional
from jaxdecode.training import answers, losses
from jaxdecode.training.answers import Aligned
from jaxdecode.training.features import known
from jaxdecode.training.objective import Objective, Start, Texts, heads_only
from jaxdecode.training.schedules import antithetic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        read_weight: of the cross-entropy of the caption by what is said.
        believed: share of texts in which what was said is believed.
        alone: share of texts that are learned beside zeros.
    """

    read_weight: float = 0.2
    believed: float = 0.5
    alone: float = 0.1

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("read_weight", self.read_weight, "at least 0", lambda x: x >= 0)
        checks.number("believed", self.believed, "from 0 to 1", lambda x: 0 <= x <= 1)
        checks.number("alone", self.alone, "from 0 to below 1", lambda x: 0 <= x < 1)


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the heads but the statistics."""
    assert models.heads is not None
    shape: net.Shape = models.heads.shape
    model = models.target
    name = net.tap(shape, model.config)

    def init(key, weights, texts):
        answers.check_alone("ladic", texts)
        params = net.init(shape, model.config, key, weights.target)
        if texts is not None:
            params |= _statistics(lambda batch: features(weights.target, batch), texts, shape)
        return Start(params, lambda leaf: leaf in ("mean", "scale"))

    def features(target_params, batch):
        return answers.apart(model, target_params, batch, shape.max_length, name)

    def loss(params, target_params, batch, key, moment):
        del moment
        hidden, states = known(batch, features, target_params)
        prompt = cosmos.features(hidden)
        read = answers.aligned(batch, net.vectors(params, states), prompt, shape.max_length)
        read = _filled(read, shape.max_length)
        clean = net.absent(read.real, read.states)
        said = _said(config, shape, params, read, clean, key)
        distance = jnp.sqrt(jnp.square(said - clean).sum(-1) + 1e-8).mean(-1)
        scored = (model, shape, params, jax.lax.stop_gradient(target_params), read)
        error, accuracy = _read(*scored, said)
        own, _ = _read(*scored, clean)
        there = read.real[:, 0].astype(jnp.float32)
        total = losses.weighted_mean(distance, there) + config.read_weight * error + own
        return total, {"accuracy": accuracy, "read_loss": own}

    return Objective(init=init, loss=loss, export=heads_only, features=features)


def _statistics(features: Any, texts: Texts, shape: net.Shape) -> dict[str, Array]:
    """Mean and standard deviation of the states of all answers, number by number."""

    @jax.jit
    def sums(batch):
        states = features(batch)[1].astype(jnp.float32)
        weight = answers.parts_of(batch, shape.max_length).answer[..., None]
        parts = (jnp.where(weight, power, 0).sum((0, 1)) for power in (states, states**2))
        return weight.sum(), *parts

    found = [sums(jax.tree.map(jnp.asarray, batch)) for batch in texts.batches()]
    count, first, second = (sum(column) for column in zip(*found, strict=True))
    mean = first / jnp.maximum(count, 1)
    variance = second / jnp.maximum(count, 1) - mean**2
    return {"mean": mean, "scale": jnp.sqrt(jnp.maximum(variance, bidirectional.EPS))}


def _filled(read: Aligned, num: int) -> Aligned:
    """Texts of exactly `num` places: decoding has as many, whatever a text's length."""
    more = num - read.tokens.shape[1]

    def pad(array: Array) -> Array:
        return jnp.pad(array, [(0, 0), (0, more), *[(0, 0)] * (array.ndim - 2)])

    parts = {name: pad(getattr(read, name)) for name in ("tokens", "states", "real")}
    return read._replace(**parts)


def _said(config, shape, params, read, clean, key) -> Float[Array, "B N D"]:
    """What is said of vectors under noise; of texts that believe, after it was said once."""
    clock, draw, coin, none = jax.random.split(key, 4)
    count = clean.shape[0]
    time = antithetic(clock, count, 1)[:, 0]
    level = jnp.floor(time * shape.num_levels).astype(jnp.int32)
    signal = jnp.asarray(schedules.linear(shape.num_levels))[level]
    noise = shape.noise_scale * jax.random.normal(draw, clean.shape)
    noisy = schedules.diffuse(clean, noise, jnp.broadcast_to(signal[:, None], clean.shape[:2]))
    alone = jax.random.uniform(none, (count, 1, 1)) < config.alone
    prompt = read.prompt._replace(x=jnp.where(alone, 0.0, read.prompt.x))
    nothing = jnp.zeros_like(clean)
    first = net.denoise(shape, params, noisy, nothing, level, prompt)
    believes = jax.random.uniform(coin, (count, 1, 1)) < config.believed
    first = jnp.where(believes, jax.lax.stop_gradient(first), nothing)
    return net.denoise(shape, params, noisy, first, level, prompt)


def _read(
    model: Model, shape: net.Shape, params: Any, target_params: Any, read: Aligned, vectors: Array
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy of the caption as read from vectors, and how many tokens are right."""
    code, exists = net.read(shape, params, vectors)

    def per_token(code, wanted):
        scores = model.target.logits(target_params, code).astype(jnp.float32)
        return losses.cross_entropy(scores, wanted), scores.argmax(-1) == wanted

    error, hits = losses.over_tokens(per_token, code, read.tokens)
    weight = read.real.astype(jnp.float32)
    ends = jax.nn.softplus(jnp.where(read.real, -exists, exists))
    there = jnp.broadcast_to(read.real[:, :1], ends.shape).astype(jnp.float32)
    total = losses.weighted_mean(error, weight) + losses.weighted_mean(ends, there)
    return total, losses.weighted_mean(hits.astype(jnp.float32), weight)
