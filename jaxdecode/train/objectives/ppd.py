"""Prompt tokens: each learns the law that the target has at its place; the target is frozen.

Loss: sum over probes j (from 0) of decay^(j+1) KL(target's law j + 1 tokens on, probe j's law) / n
(arXiv:2405.18628).
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.core.protocols import HeadSpec, Model
from jaxdecode.heads import ppd
from jaxdecode.train import losses, probed
from jaxdecode.train.objective import Objective, Start, heads_only
from jaxdecode.trees import probes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        decay: weight of each probe relative to the one before.
        num_places: places of a text that are probed in one step; None probes all.
    """

    decay: float = 0.8
    num_places: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("decay", self.decay, "a number in (0, 1]", lambda x: 0 < x <= 1)
        if self.num_places is not None:
            checks.integer("num_places", self.num_places, low=1)


def make(config: Config, model: Model, spec: HeadSpec) -> Objective:
    """The objective of prompt tokens in a frozen target."""
    target, shape = model.target, spec.shape

    def init(key, target_params):
        return Start(ppd.init(shape, model.config, key, target_params))

    def loss(params, target_params, batch, key):
        frozen = jax.lax.stop_gradient(target_params)
        laid = probed.lay(batch, key, num_probes=shape.num_probes, num_places=config.num_places)
        params_of, x = probes.enter(target, frozen, params, laid.tokens, laid.probe)
        output = target.forward(params_of, x, laid.program, None)
        texts, asked = laid.split(output.hidden)
        return distilled(target, frozen, laid, asked, texts, config.decay)

    return Objective(init=init, loss=loss, export=heads_only)


def distilled(target, params, laid, asked, texts, decay):
    """Loss and metrics of probes that should have the target's own law at their places.

    Args:
        target: its functions.
        params: its parameters.
        laid: what the pass was given.
        asked: hidden states of the probes.
        texts: hidden states of the tokens.
        decay: weight of each probe relative to the one before.
    """

    def per_probe(asked, taught, wanted):
        scores = target.logits(params, asked)
        law = jax.nn.softmax(target.logits(params, taught))
        distance = losses.soft_cross_entropy(scores, law) + (law * jnp.log(law + 1e-20)).sum(-1)
        return distance, scores.argmax(-1) == wanted

    taught = jax.lax.stop_gradient(laid.later(texts))
    errors, hits = losses.over_tokens(per_probe, asked, taught, laid.wanted)
    rates = losses.per_head(hits, laid.weight)
    metrics = {f"accuracy.{j}": rate for j, rate in enumerate(rates)}
    return combine(losses.per_head(errors, laid.weight), decay), metrics


def combine(errors, decay):
    """The weighted sum of the probes' errors, over their number."""
    return (errors * decay ** jnp.arange(1, len(errors) + 1)).sum() / len(errors)
