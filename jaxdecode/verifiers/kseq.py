"""K-SEQ: keep the first of m independent drafts that passes a test made milder for their number.

Draft x passes with probability min(1, p(x) / (rho q(x))). The factor rho in [1, m] is the smallest
for which the chance that any of the m drafts passes does not exceed what the target can give:
sum min(p, rho q) >= 1 - (1 - beta)^m with beta = sum min(q, p / rho). If none passes, the token is
drawn from what is left of p. At least 1 - 1/e of the best possible acceptance.

Exactness: L1 against `ar` for children drawn independently from the recorded law; equal drafts
stay separate and each gets its own test.
Cost: about 40 passes over the vocabulary per node of the accepted path with two drafts or more.
Source: SpecTr, arXiv:2310.15141 (no code of the authors was found); differs: a token drawn from
what is left may be one of the drafts and goes on there.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode.core.protocols import Models, Verifier
from jaxdecode.sampling import residual
from jaxdecode.trees import walk

_BISECTIONS = 30  # halves [1, m] down to the resolution of float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """No options."""


def make(config: Config, models: Models) -> Verifier:
    """The verifier."""
    del config, models
    return walk.make(lambda visit: jnp.log(law(visit)), draws="with_replacement")


def law(visit: walk.Visit) -> Float[Array, "V"]:
    """Law of the next token given the children."""
    target = visit.target_probs()
    if visit.draft_probs is None or visit.tokens.shape[0] == 0:
        return target
    draft = visit.draft_probs
    number = visit.valid.sum().astype(jnp.float32)
    rho = smallest_factor(target, draft, number) if visit.tokens.shape[0] > 1 else jnp.float32(1.0)

    passes = jax.vmap(residual.accept)(target[visit.tokens], rho * draft[visit.tokens])
    passes = jnp.where(visit.valid, passes, 0.0)
    going = jnp.cumprod(1.0 - passes)
    before = jnp.concatenate([jnp.ones(1), going[:-1]])
    decided = jnp.zeros_like(target).at[visit.tokens].add(before * passes)

    shared = jnp.minimum(draft, target / rho)
    one = jnp.clip(shared.sum(), 0.0, 1.0)
    # Of all drafts that pass, the share of a token is that of one draft.
    given = shared * jnp.where(one > 0, any_of(one, number) / jnp.maximum(one, 1e-30), 0.0)
    return decided + going[-1] * residual.normalise(target - given, target)


def smallest_factor(
    target: Float[Array, "V"], draft: Float[Array, "V"], number: Float[Array, ""]
) -> Float[Array, ""]:
    """The smallest rho in [1, number] that leaves a residual without negative parts."""

    def enough(rho):
        one = jnp.clip(jnp.minimum(draft, target / rho).sum(), 0.0, 1.0)
        return rho * one >= any_of(one, number)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        good = enough(middle)
        return jnp.where(good, low, middle), jnp.where(good, middle, high)

    one = jnp.float32(1.0)
    top = jnp.maximum(number, one)
    _, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (one, top))
    return jnp.where(enough(one), one, high)


def any_of(chance: Float[Array, ""], number: Float[Array, ""]) -> Float[Array, ""]:
    """Chance that at least one of `number` independent trials succeeds."""
    return jnp.where(number > 0, 1.0 - (1.0 - chance) ** number, 0.0)
