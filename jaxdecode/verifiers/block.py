"""Block verification: decide on a whole chain at once instead of token by token.

With b the target's and s the drafter's law along the drafts x_1..x_n: c_0 = 1 and
c_i = min(c_(i-1) b(x_i) / s(x_i), 1). A prefix of i drafts holds with chance
h_i = Z / (Z + 1 - c_i), where Z = sum over v of max(c_i b(v) - s(v), 0) at the next place, and
h_n = c_n. The longest prefix that holds is accepted; the next token is drawn from the positive
part of c_i b - s there, or from b after a whole chain. Never accepts less than testing token by
token, on average, and is the best rule that looks at the laws along the chain alone.

Exactness: L1 against `ar`, for chains drawn from the recorded law; how far a chain goes may depend
on its own tokens.
Cost: every node is warped, not only the accepted ones.
Source: arXiv:2403.10444; differs: the length is one draw from its law, made with noise of its own.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxdecode.core.protocols import Models, Verifier
from jaxdecode.core.types import Canvas, Proposal, Sampling, Verdict
from jaxdecode.errors import InputError
from jaxdecode.sampling import noise, residual, warp
from jaxdecode.trees import walk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """No options."""


def make(config: Config, models: Models) -> Verifier:
    """The verifier."""
    del config, models
    return Verifier(verify=_verify, outcomes=_outcomes)


def laws(
    target: Float[Array, "N V"],
    draft: Float[Array, "N V"],
    tokens: Int[Array, "N"],
    valid: Bool[Array, "N"],
) -> tuple[Float[Array, "N"], Float[Array, "N V"]]:
    """Law of the number of accepted drafts, and of the next token for each number.

    Args:
        target: the target's law at each node of the chain.
        draft: law that the token of the following node was drawn from.
        tokens: token of each node; that of node 0 is not read.
        valid: which nodes exist; no gaps.
    """
    before = jnp.arange(tokens.shape[0] - 1)
    ratio = target[before, tokens[1:]] / jnp.maximum(draft[before, tokens[1:]], 1e-30)

    def weigh(weight, step):
        weight = jnp.where(step[1], jnp.minimum(weight * step[0], 1.0), 0.0)
        return weight, weight

    one = jnp.float32(1.0)
    _, weights = jax.lax.scan(weigh, one, (ratio, valid[1:]))
    weights = jnp.concatenate([one[None], weights])

    last = jnp.arange(tokens.shape[0]) == valid.sum() - 1
    left = jnp.maximum(weights[:, None] * target - draft, 0.0)
    free = left.sum(-1)
    room = free + 1.0 - weights
    holds = jnp.where(last, weights, jnp.where(room > 0, free / jnp.maximum(room, 1e-30), 1.0))
    # Rounding must not lift a chance above 1: what is left of 1 would be negative.
    holds = jnp.where(valid, jnp.minimum(holds, 1.0), 0.0).at[0].set(1.0)
    fails_later = jnp.cumprod((1.0 - holds)[::-1])[::-1]
    length = holds * jnp.concatenate([fails_later[1:], one[None]])
    next_token = jax.vmap(residual.normalise)(left, target)
    return length, jnp.where(last[:, None], target, next_token)


def _verify(weights, request, canvas, proposal, output):
    del weights
    walk.check_draft_law(proposal)
    if proposal.max_children > 1 or proposal.max_depth + 1 != proposal.tokens.shape[1]:
        raise InputError(
            "verifier block decides on single chains, but the drafter proposes a tree; use one "
            "chain, or verifier rejection."
        )
    return walk.by_row(_decide, request, canvas, proposal, output.logits, output.allowed)


def _outcomes(scores, greedy, proposal, marks):
    del marks
    length_law, next_law = _laws_of(scores, greedy, proposal)
    return length_law[:, None] * next_law


def _laws_of(
    scores: Float[Array, "N V"], greedy: Bool[Array, ""], proposal: Proposal
) -> tuple[Float[Array, "N"], Float[Array, "N V"]]:
    """`laws` of one row's proposal from warped scores."""
    num_nodes, size = scores.shape
    target = jax.vmap(walk.probs_of, in_axes=(0, None))(scores, greedy)
    drawn_from = proposal.draft_probs
    if drawn_from is None:
        return jnp.ones(1), target
    draft = jax.vmap(lambda node: walk.law_at(drawn_from, node, size))(jnp.arange(num_nodes))
    return laws(target, draft, proposal.tokens, proposal.valid)


def _decide(
    with_noise: bool,
    key: Array,
    sampling: Sampling,
    canvas: Canvas,
    proposal: Proposal,
    logits: Float[Array, "N V"],
    allowed: UInt32[Array, "N M"] | None,
) -> Verdict:
    num_nodes, size = logits.shape
    greedy = sampling.temperature < warp.GREEDY_BELOW
    index = jnp.arange(num_nodes, dtype=jnp.int32)
    seen = walk.seen_tokens(canvas, sampling, size)
    if seen is not None:
        on_path = jax.nn.one_hot(proposal.tokens, size, dtype=jnp.int32).cumsum(0) > 0
        seen = seen | on_path
    axes = (0, None, None if seen is None else 0, None if allowed is None else 0)
    warped = jax.vmap(warp.warp, in_axes=axes)(logits, sampling, seen, allowed)
    length_law, next_law = _laws_of(warped, greedy, proposal)

    # The pending token's position belongs to this step alone: no other step reads its BLOCK noise.
    length_scores = jnp.log(length_law)
    if with_noise:
        stream = noise.gumbel(key, canvas.length, purpose=noise.BLOCK, size=num_nodes)
        length_scores = length_scores + jnp.where(greedy, 0.0, stream)
    num_accepted = jnp.argmax(length_scores).astype(jnp.int32)
    scores = jnp.log(next_law[num_accepted])
    if with_noise:
        position = canvas.length + num_accepted + 1
        stream = noise.gumbel(key, position, purpose=noise.TOKEN, size=size)
        scores = scores + jnp.where(greedy, 0.0, stream)
    next_token = jnp.argmax(scores).astype(jnp.int32)

    tokens = jnp.roll(proposal.tokens, -1).at[num_accepted].set(next_token)
    logprob = logits[index, tokens] - jax.nn.logsumexp(logits, axis=-1)
    return Verdict(tokens=tokens, logprob=logprob, path=index, num_accepted=num_accepted)
