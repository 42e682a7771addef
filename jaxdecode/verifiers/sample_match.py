"""Sample and match: draw the target's own token at a node, descend if a child carries it.

The walk starts at the root. At each node the target's token is drawn with the noise of its
position; if a valid child has that token the walk goes on there, else it ends and the drawn token
is next_token. What is emitted is always the target's own draw, and its noise depends on the
position alone, so the output is token-identical to plain decoding whatever was proposed. Greedy
verification is the temperature 0 case.

Exactness: L0 against `ar`, for every proposal that is a function of the past.
Source: target-only verification of tree drafts, arXiv:2401.10774 section 2.3.2 (greedy case);
position-keyed noise is ours.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode.core.protocols import Verifier
from jaxdecode.core.types import Canvas, Proposal, Request, Sampling, Verdict
from jaxdecode.sampling import noise, warp


def make() -> Verifier:
    """The verifier; it has no options."""
    return Verifier(verify=_verify)


def _verify(
    request: Request, canvas: Canvas, proposal: Proposal, logits: Float[Array, "B N V"]
) -> Verdict:
    sampled = jnp.any(request.sampling.temperature >= warp.GREEDY_BELOW)

    bias = request.sampling.logit_bias
    per_row = dataclasses.replace(request.sampling, logit_bias=None)

    def walk_all(with_noise: bool) -> Verdict:
        def row(key, sampling, canvas, proposal, logits):
            sampling = dataclasses.replace(sampling, logit_bias=bias)
            return _walk(key, sampling, canvas, proposal, logits, with_noise)

        return jax.vmap(row)(request.key, per_row, canvas, proposal, logits)

    # Noise over the vocabulary costs as much as several layers on a CPU: not drawn for nothing.
    return jax.lax.cond(sampled, lambda: walk_all(True), lambda: walk_all(False))


def _walk(
    key: Array,
    sampling: Sampling,
    canvas: Canvas,
    proposal: Proposal,
    logits: Float[Array, "N V"],
    with_noise: bool,
) -> Verdict:
    seen = None
    if sampling.repetition_penalty is not None:
        seen = jnp.zeros(logits.shape[-1], bool).at[canvas.tokens].max(~canvas.open)

    def visit(carry, depth):
        node, alive, seen, num_accepted = carry
        row = logits[node]
        gumbel = None
        if with_noise:
            position = canvas.length + depth + 1
            gumbel = noise.gumbel(key, position, purpose=noise.TOKEN, size=row.shape[0])
        token = warp.draw(row, sampling, seen, gumbel)
        logprob = row[token] - jax.nn.logsumexp(row)
        match = proposal.valid & (proposal.parent == node) & (proposal.tokens == token)
        descend = alive & match.any()
        if seen is not None:
            seen = seen.at[token].set(True)
        child = jnp.where(descend, jnp.argmax(match), node)
        return (child, descend, seen, num_accepted + descend), (token, logprob, node)

    start = (jnp.int32(0), jnp.bool_(True), seen, jnp.int32(0))
    if proposal.max_depth == 0:
        carry, out = visit(start, jnp.int32(0))
        out = jax.tree.map(lambda x: x[None], out)
    else:
        depths = jnp.arange(proposal.max_depth + 1, dtype=jnp.int32)
        carry, out = jax.lax.scan(visit, start, depths)
    tokens, logprob, path = out
    return Verdict(
        tokens=tokens, logprob=logprob, path=path.astype(jnp.int32), num_accepted=carry[3]
    )
