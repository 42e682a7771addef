"""Prompt tokens: each learns the law that the target has at its place; the target is frozen.

Loss: sum over probes j (from 0) of decay^(j+1) KL(target's law j + 1 tokens on, probe j's law) / n
(arXiv:2405.18628).
"""

import dataclasses

import jax

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.heads import ppd
from jaxdecode.training import probed
from jaxdecode.training.objective import Objective, Start, heads_only
from jaxdecode.trees import probes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        decay: weight of each probe relative to the one before.
        temperature: of the target's law; small values teach its likeliest token.
        num_places: places of a text that are probed in one step; None probes all.
    """

    decay: float = 0.8
    temperature: float = 1.0
    num_places: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("decay", self.decay, "a number in (0, 1]", lambda x: 0 < x <= 1)
        checks.number("temperature", self.temperature, "above 0", lambda x: x > 0)
        if self.num_places is not None:
            checks.integer("num_places", self.num_places, low=1)


def make(config: Config, models: Models) -> Objective:
    """The objective of prompt tokens in a frozen target."""
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    target = model.target

    def init(key, weights, texts):
        del texts
        return Start(ppd.init(shape, model.config, key, weights.target))

    def loss(params, target_params, batch, key, moment):
        del moment
        frozen = jax.lax.stop_gradient(target_params)
        laid = probed.lay(batch, key, num_probes=shape.num_probes, num_places=config.num_places)
        params_of, x = probes.enter(target, frozen, params, laid.tokens, laid.probe)
        output = target.forward(params_of, x, laid.program, None)
        texts, asked = laid.split(output.hidden)
        return probed.distilled(
            target, frozen, laid, asked, texts, decay=config.decay, temperature=config.temperature
        )

    return Objective(init=init, loss=loss, export=heads_only)
