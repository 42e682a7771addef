"""Hydra: every head learns the token it guesses, given the tokens before it; the target is frozen.

Loss: sum over heads k (from 0) of decay^(k+1) times CE with the token k + 2 places on, times
`token_weight`, and the cross-entropy with the target's own law of that token, times `law_weight`
(arXiv:2402.05109).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.core import ops
from jaxdecode.core.protocols import Models
from jaxdecode.heads import hydra
from jaxdecode.training import classes, features, linear, losses, probed
from jaxdecode.training.objective import Export, Objective, Start, Texts, ahead
from jaxdecode.training.objectives.medusa import decays

# (params, head, what the head before left [N, ...], the token before its guess as an embedding
# [N, D], the target's head) -> (scores [N, V], what it leaves to the next)
Step = Callable[..., tuple[Any, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning:
    """Settings of heads that read one token after another.

    Attributes:
        decay: weight of each head relative to the one before.
        token_weight: weight of the texts' tokens.
        law_weight: weight of the target's law.
        num_places: places of a row that are learned in one step; None learns all.
        num_classes: tokens that are scored in one step (`training/classes.py`); None scores all.
    """

    decay: float = 0.8
    token_weight: float = 1.0
    law_weight: float = 0.0
    num_places: int | None = None
    num_classes: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("decay", self.decay, "a number in (0, 1]", lambda x: 0 < x <= 1)
        checks.number("token_weight", self.token_weight, "at least 0", lambda x: x >= 0)
        checks.number("law_weight", self.law_weight, "at least 0", lambda x: x >= 0)
        for name in ("num_places", "num_classes"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Learning):
    """Settings.

    Attributes:
        token_scale: what embeddings are multiplied by in training; the trained kernels take it in.
            Where embeddings are far smaller than states, heads learn little from them otherwise.
        ridge: heads begin with what follows linearly from what they read: the state of which the
            target reads their token, by least squares with this penalty; None begins with the
            state that they read.
    """

    token_scale: float = 1.0
    ridge: float | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
        checks.number("token_scale", self.token_scale, "above 0", lambda x: x > 0)
        if self.ridge is not None:
            checks.number("ridge", self.ridge, "above 0", lambda x: x > 0)


def make(config: Config, models: Models) -> Objective:
    """The objective of heads that read the target's states as they are."""
    assert models.heads is not None
    shape, model = models.heads.shape, models.target

    def init(key, weights, texts):
        params = hydra.init(shape, model.config, key, weights.target)
        if config.ridge is not None and texts is not None:
            params |= fitted(config, models, params, weights.target, texts)
        return Start(params)

    def export(params, target):
        del target
        return Export(heads=taken_in(params, model.config.hidden_size, config.token_scale))

    step = step_of(models, config.token_scale)
    loss = loss_of(config, models, lambda params, frozen, batch, hidden: hidden, step)
    return Objective(init=init, loss=loss, export=export, features=features.states(model.target))


def fitted(
    config: Config, models: Models, params: Mapping[str, Any], target_params: Any, texts: Texts
) -> dict[str, Any]:
    """The heads with the first block's linear part fitted to the target's states."""
    assert models.heads is not None and models.target.target.embed is not None
    target, places = models.target.target, range(models.heads.shape.num_heads)
    embed = models.target.target.embed

    def pairs(batch):
        hidden = features.known(batch, features.states(target), target_params)
        inputs, found = [hidden], []
        for k in places:
            row = embed(target_params, ahead(batch, k + 1)[0])
            inputs.append(row * jnp.asarray(config.token_scale, row.dtype))
            x = jnp.concatenate([part.astype(hidden.dtype) for part in inputs], axis=-1)
            found.append((x, features.shift(hidden, k + 1), ahead(batch, k + 2)[1]))
        return found

    maps = linear.fit(texts.batches(), pairs, config.ridge or 0.0)
    heads = {}
    for k, (kernel, bias) in enumerate(maps):
        own = params[f"head.{k}"]
        first = own["block.0"] | {"skip": {"kernel": kernel, "bias": bias}}
        heads[f"head.{k}"] = own | {"block.0": first}
    return heads


def taken_in(params: Mapping[str, Any], width: int, scale: float) -> dict[str, Any]:
    """Heads that say of embeddings what these say of embeddings times `scale`.

    Args:
        params: of heads whose first block reads a state and embeddings behind it.
        width: of a state.
        scale: what embeddings were multiplied by.
    """

    def rows(path, leaf):
        names = [key.key for key in path]
        if names[0].startswith("head.") and names[1] == "block.0" and names[-1] == "kernel":
            return leaf.at[width:].multiply(scale)
        return leaf

    return jax.tree_util.tree_map_with_path(rows, params)


def step_of(models: Models, token_scale: float = 1.0) -> Step:
    """A step of Hydra heads: a head leaves to the next all that it read."""
    assert models.heads is not None
    shape = models.heads.shape

    def step(params, head, told, row, target_logits):
        row = row * jnp.asarray(token_scale, row.dtype)
        inputs = jnp.concatenate([told.astype(row.dtype), row], axis=-1)
        return hydra.logits(shape, params, head, inputs, target_logits), inputs

    return step


def loss_of(
    config: Learning, models: Models, read: Callable[..., Any], step: Step
) -> Callable[..., Any]:
    """The loss of heads that read one token after another.

    Args:
        config: settings.
        models: the target and the heads.
        read: (params, target params, batch, the target's states) -> what the first head is told.
        step: a head's scores.
    """
    assert models.heads is not None and models.target.target.embed is not None
    classes.check(config.num_classes, models.heads.shape)
    model, shape = models.target, models.heads.shape
    target = model.target
    embed, places = models.target.target.embed, range(shape.num_heads)

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen = jax.lax.stop_gradient(target_params)
        hidden = features.known(batch, features.states(target), frozen)
        guesses = [ahead(batch, k + 2) for k in places]
        wanted, weight = (jnp.stack(arrays, -1) for arrays in zip(*guesses, strict=True))
        # Head k reads the tokens 1 to k + 1 places on; the target says its token one place later.
        seen = jnp.stack([ahead(batch, k + 1)[0] for k in places], -1)
        later = jnp.stack([features.shift(hidden, k + 1) for k in places], 2)
        where, which = jax.random.split(key)
        scored = classes.draw(model.config, frozen, batch.tokens, which, config.num_classes)

        def per_token(params, state, given):
            seen, later, wanted = given
            told, scores = state, []
            for k in places:
                row = embed(frozen, seen[:, None, k])[:, 0]
                own, told = step(params, k, told, row, lambda x: target.logits(scored.params, x))
                scores.append(own)
            scores = jnp.stack(scores, 1)
            weighed = scores + scored.bias
            errors = config.token_weight * losses.cross_entropy(weighed, wanted)
            if config.law_weight:
                law = jax.nn.softmax(target.logits(scored.params, later) + scored.bias)
                errors += config.law_weight * losses.soft_cross_entropy(weighed, law)
            return errors, scores.argmax(-1) == wanted

        learned = probed.choose(weight[..., 0], where, config.num_places)
        states, *given = (
            ops.taken(x, learned)
            for x in (read(params, frozen, batch, hidden), seen, later, scored.column[wanted])
        )
        share = losses.shares(ops.taken(weight, learned))
        counts = share * decays(len(places), config.decay)
        value, hits = losses.summed(per_token, params, states, tuple(given), counts)
        rates = (hits * share).sum((0, 1))
        return value, {f"accuracy.{k}": rate for k, rate in enumerate(rates)}

    return loss
