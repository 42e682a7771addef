"""Nested exits of a draft model: each of its first so many layers is a draft model by itself.

Loss: the sum over exits, all layers included, of the cross-entropy on the next token
(arXiv:2407.01955; the exits are ours, since the paper's were not found). The draft model may begin
as the target's first layers, with its embeddings, final norm and head.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.convert.heads import flattened
from jaxdecode.core.protocols import Models
from jaxdecode.drafters import s2d
from jaxdecode.errors import InputError
from jaxdecode.training import whole
from jaxdecode.training.objective import Objective, program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        exits: layer counts of the early exits; None takes 1/2 and 3/4 of the draft model's, as
            decoding does.
        begin: "target": with the target's first layers, which must be as wide as the draft
            model's; "draft": with the draft model's own parameters.
    """

    exits: tuple[int, ...] | None = None
    begin: Literal["target", "draft"] = "target"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        for last in self.exits or ():
            checks.integer("exits", last, low=1)
        if self.begin not in ("target", "draft"):
            raise InputError(f"begin={self.begin!r} is not known; use 'target' or 'draft'.")


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the draft model."""
    assert models.draft is not None
    model = models.draft
    num_layers = model.config.num_layers
    exits = sorted({*s2d.exits_of(config.exits, num_layers), num_layers})
    taps = tuple(f"layer.{last - 1}" for last in exits)

    def init(key, weights, texts):
        del key, texts
        own = whole.start(weights.drafter)
        if config.begin == "draft":
            return own
        cut = whole.start(whole.first_layers(models.target, weights.target, num_layers))
        wanted, got = (
            {name: leaf.shape for name, leaf in flattened(start.params).items()}
            for start in (own, cut)
        )
        if wanted != got:
            raise InputError(
                "the draft model has other widths than the target, so it cannot begin with its "
                "first layers; set objective.begin=draft, or leave out the draft's sizes but "
                "num_layers."
            )
        return cut

    def loss(params, target_params, batch, key, moment):
        del target_params, key, moment
        output = model.target.forward(params, batch.tokens, program(batch), None, taps)
        states = jnp.stack([output.taps[name] for name in taps], axis=2)
        errors, rates = whole.read(model, params, states, batch)
        metrics = {f"accuracy.{last}": rate for last, rate in zip(exits, rates, strict=True)}
        return errors.sum(), metrics

    return Objective(init=init, loss=loss, export=whole.as_draft)
