"""Reflective verification: a draft also stays if the target would keep it on reflection.

The drafter has put a copy of the draft behind it. The scores b before a copied token, where the
target has read the whole draft, are mixed with the original ones a: (1 - alpha) a + alpha b. The
draft is kept with the larger of its probabilities under the mixture and under the original law;
what is emitted instead is always drawn from the original law.

Exactness: L3. alpha = 0 is token-identical to `ar`.
Cost: all nodes of the draft are warped once more.
Source: arXiv:2505.18629 (no code of the authors was found); ours: the layout and the mixture;
reflection can only keep more drafts, never refuse one.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from jaxdecode import checks
from jaxdecode.core.protocols import Models, Verifier
from jaxdecode.core.types import Canvas, Proposal, Sampling
from jaxdecode.errors import InputError
from jaxdecode.sampling import residual, warp
from jaxdecode.trees import walk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        alpha: weight of the second reading, 0 to 1.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("alpha", self.alpha, "from 0 to 1", lambda value: 0 <= value <= 1)


def make(config: Config, models: Models) -> Verifier:
    """The verifier."""
    del models
    if config.alpha == 0:
        return walk.make(lambda visit: visit.scores, reads_children=False)

    def marks(weights, request, canvas, proposal, output):
        del weights
        if proposal.max_depth == 0:
            return jnp.zeros(proposal.tokens.shape)
        if proposal.probe is None:
            raise InputError(
                "verifier reflective needs a drafter that repeats its draft: drafter reflective."
            )
        bias = request.sampling.logit_bias
        sampling = dataclasses.replace(request.sampling, logit_bias=None)

        def row(sampling, canvas, proposal, logits, allowed):
            sampling = dataclasses.replace(sampling, logit_bias=bias)
            return _kept(config.alpha, sampling, canvas, proposal, logits, allowed)

        return jax.vmap(row)(sampling, canvas, proposal, output.logits, output.allowed)

    return walk.make(_rule, marks=marks)


def _rule(visit: walk.Visit) -> Float[Array, "V"]:
    if visit.marks is None or visit.tokens.shape[0] == 0:
        return visit.scores
    token, kept, target = visit.tokens[0], visit.marks[0], visit.target_probs()
    others = residual.normalise(target.at[token].set(0.0), target)
    raised = jnp.log(((1.0 - kept) * others).at[token].set(kept))
    return jnp.where(visit.valid[0] & (kept > target[token]), raised, visit.scores)


def _kept(
    alpha: float,
    sampling: Sampling,
    canvas: Canvas,
    proposal: Proposal,
    logits: Float[Array, "N V"],
    allowed: UInt32[Array, "N M"] | None,
) -> Float[Array, "N"]:
    """Probability of each draft under the mixture; 0 for nodes that are no drafts."""
    num_nodes, size = logits.shape
    num_draft = proposal.max_depth
    draft = proposal.tokens[1 : num_draft + 1]
    original, again = logits[:num_draft], logits[num_nodes - num_draft - 1 : num_nodes - 1]
    seen = walk.seen_tokens(canvas, sampling, size)
    if seen is not None:
        before = jax.nn.one_hot(proposal.tokens[:num_draft], size, dtype=jnp.int32)
        seen = seen | (before.cumsum(0) > 0)
    mixed = (1.0 - alpha) * original + alpha * again
    if allowed is not None:
        allowed = allowed[:num_draft]
    axes = (0, None, None if seen is None else 0, None if allowed is None else 0)
    warped = jax.vmap(warp.warp, in_axes=axes)(mixed, sampling, seen, allowed)
    greedy = sampling.temperature < warp.GREEDY_BELOW
    law = jax.vmap(walk.probs_of, in_axes=(0, None))(warped, greedy)
    found = jnp.take_along_axis(law, draft[:, None], axis=1)[:, 0]
    return jnp.zeros(num_nodes).at[1 : num_draft + 1].set(found)
