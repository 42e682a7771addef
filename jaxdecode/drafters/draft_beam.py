"""Stochastic beams: the `width` best prefixes of every level, drawn without replacement.

Every prefix carries a perturbed log-probability; children's numbers are Gumbel noise around their
log-probabilities, conditioned to have their parent's number as maximum. The best of a level are
then a sample of whole prefixes without replacement, and a likely parent may have many children
while an unlikely one has none.

Exactness: L1 under `rejection`: whether a child exists depends on numbers, never on which token
it is. Cost: a forward pass of the draft model per level, over the whole tree so far.
Source: RSD-S of arXiv:2402.14160; the conditional maximum arXiv:1903.06059.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.trees import levels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        width: prefixes kept per level.
        num_draft: levels.
    """

    width: int = 4
    num_draft: int = 4

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("width", self.width, low=1)
        checks.integer("num_draft", self.num_draft, low=1)


def make(config: Config, models: Models) -> Drafter:
    """The drafter; its state is the draft model's cache."""
    return levels.make(plan(config), models)


def plan(config: Config) -> levels.Plan:
    """The plan of stochastic beams."""
    width = config.width

    def expand(law, gumbel, carry, level):
        del level
        # Per prefix: its log-probability and its perturbed number; -inf where it does not exist.
        log_prob, number = carry
        best = jax.vmap(lambda *args: _children(*args, num=width))
        tokens, child_log_prob, child_number = best(law, gumbel, log_prob, number)
        order = jnp.argsort(-child_number.reshape(-1), stable=True)[:width]
        parent = (order // width).astype(jnp.int32)
        kept = child_number.reshape(-1)[order]
        carry = (child_log_prob.reshape(-1)[order], kept)
        return levels.Children(tokens.reshape(-1)[order], parent, kept > -jnp.inf, carry, law)

    return levels.Plan(
        sizes=(width,) * config.num_draft,
        noise=(1, *(width,) * (config.num_draft - 1)),
        expand=expand,
        carry=(jnp.zeros(1), jnp.zeros(1)),
        max_children=width,
        draws="without_replacement",
    )


def _children(law, gumbel, log_prob, number, *, num):
    """The best children of one prefix, best first, and their two numbers."""
    tokens, own = levels.race(law, gumbel, num)
    child_log_prob = log_prob + jnp.log(law[tokens])
    # race adds the noise to the law; the prefix's own probability shifts all children alike.
    child_number = conditioned(own + log_prob, number)
    exists = (own > -jnp.inf) & (number > -jnp.inf)
    lowest = jnp.where(exists, child_number, -jnp.inf)
    return tokens, jnp.where(exists, child_log_prob, -jnp.inf), lowest


def conditioned(children: Float[Array, "C"], maximum: Float[Array, ""]) -> Float[Array, "C"]:
    """Perturbed numbers in falling order, conditioned on their maximum."""
    gap = maximum - children + jnp.log1p(-jnp.exp(children - children[0]))
    return maximum - jnp.maximum(gap, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(gap)))
