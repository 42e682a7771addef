"""Typical acceptance: a draft stays if the target finds it likely enough for the moment.

Child x is accepted if p(x) > min(epsilon, delta exp(-H(p))), with H the entropy of the target's
law p: where the target hesitates, less probability is asked for. The first child in draft order
that passes is taken; if none does, the token is drawn from p as plain decoding would.

Exactness: L3. Greedy rows are those of `ar`; epsilon = 1 with a large delta accepts nothing by the
threshold and is token-identical to `ar`.
Cost: one entropy per node of the accepted path.
Source: Medusa, arXiv:2401.10774 section 2.3.1; defaults of github.com/FasterDecoding/Medusa;
differs: children are taken in draft order, where the authors compare whole candidates.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdecode import checks
from jaxdecode.core.protocols import Models, Verifier
from jaxdecode.trees import walk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        epsilon: a probability above this is always enough; 1 or more: no probability is.
        delta: scale of the entropy's threshold.
    """

    epsilon: float = 0.09
    delta: float = 0.3

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("epsilon", self.epsilon, "above 0", lambda value: value > 0)
        checks.number("delta", self.delta, "above 0", lambda value: value > 0)


def make(config: Config, models: Models) -> Verifier:
    """The verifier."""
    del models

    def rule(visit: walk.Visit) -> Float[Array, "V"]:
        target = visit.target_probs()
        entropy = -(target * jnp.log(jnp.where(target > 0, target, 1.0))).sum()
        enough = jnp.minimum(config.epsilon, config.delta * jnp.exp(-entropy))
        return take_first(visit, target[visit.tokens] > enough)

    return walk.make(rule)


def take_first(visit: walk.Visit, passes: Bool[Array, "C"]) -> Float[Array, "V"]:
    """Scores that are sure of the first existing child that passes; else the target's own.

    What the options exclude (top-k, a grammar, ...) never passes.
    """
    if passes.shape[0] == 0:
        return visit.scores
    passes = passes & visit.valid & (visit.scores[visit.tokens] > -jnp.inf)
    token = visit.tokens[jnp.argmax(passes)]
    sure = jnp.log(jax.nn.one_hot(token, visit.scores.shape[0], dtype=jnp.float32))
    return jnp.where(passes.any(), sure, visit.scores)
