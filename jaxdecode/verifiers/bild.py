"""Rollback of Big Little Decoder: a draft stays unless the target finds it too surprising.

Child x is accepted if -log p(x) <= rollback. At the first draft that is more surprising the
target's own token takes its place and the rest is dropped. The other half of the method, the small
model that hands over when it is unsure, is the draft model's `min_prob`.

Exactness: L3. rollback = 0 is token-identical to `ar`.
Cost: that of plain verification.
Source: arXiv:2302.07863 and github.com/kssteven418/BigLittleDecoder; differs: a surprising draft
that is the target's own token does not hide later ones, so rollback = 0 is exact; rows may sample.
"""

import dataclasses

import jax
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.core.protocols import Models, Verifier
from jaxdecode.trees import walk
from jaxdecode.verifiers.typical import take_first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        rollback: surprise, in nats, from which a draft is replaced. At temperature 0 the surprise
            is that of the law at temperature 1.
    """

    rollback: float = 5.0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("rollback", self.rollback, ">= 0", lambda value: value >= 0)


def make(config: Config, models: Models) -> Verifier:
    """The verifier."""
    del models

    def rule(visit: walk.Visit) -> Float[Array, "V"]:
        surprise = -jax.nn.log_softmax(visit.scores)[visit.tokens]
        return take_first(visit, surprise <= config.rollback)

    return walk.make(rule)
