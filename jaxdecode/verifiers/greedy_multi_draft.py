"""The best rule for drafters that propose their likeliest tokens and draw one more.

Of the children of a node all but the last are the drafter's likeliest tokens; the last one is
drawn from its law without them. The rule tests the drawn one as in speculative sampling, against
that law; a token drawn from the residual may be any child and goes on there. Acceptance is
p(likeliest) + sum over the others of min(p, q~), the most any exact rule reaches for such drafts.

Exactness: L1 against `ar` if the last valid child of a node was drawn from the recorded law
without the tokens of its siblings, and these siblings are no random draws.
Cost: three passes over the vocabulary per node of the accepted path.
Source: arXiv:2502.18779 (greedy draft sampling; no code of the authors was found).
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode.core.protocols import Models, Verifier
from jaxdecode.sampling import residual
from jaxdecode.trees import walk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """No options."""


def make(config: Config, models: Models) -> Verifier:
    """The verifier."""
    del config, models
    return walk.make(lambda visit: jnp.log(law(visit)), draws="likeliest_and_one")


def law(visit: walk.Visit) -> Float[Array, "V"]:
    """Law of the next token given the children."""
    target = visit.target_probs()
    num_children = visit.tokens.shape[0]
    if visit.draft_probs is None or num_children == 0:
        return target
    index = jnp.arange(num_children)
    last = jnp.max(jnp.where(visit.valid, index, -1))
    token = visit.tokens[jnp.maximum(last, 0)]
    # Scatter entries past the vocabulary are dropped.
    likeliest = jnp.where(visit.valid & (index < last), visit.tokens, target.shape[0])
    others = visit.draft_probs.at[likeliest].set(0.0, mode="drop")
    draft = residual.normalise(others, jnp.zeros_like(others))
    # Nothing was drawn if the likeliest tokens are the whole law.
    drawn = (last >= 0) & (draft[token] > 0)
    kept = jnp.where(drawn, residual.accept(target[token], draft[token]), 0.0)
    left = jnp.where(drawn, residual.normalise(target - draft, target), target)
    return ((1.0 - kept) * left).at[token].add(kept)
