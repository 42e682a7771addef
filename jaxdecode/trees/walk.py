"""The one walk: down a proposal from its root, with an interchangeable node rule.

At every node the rule gives the law of the next token from the target's law, the law the children
were drawn from, and the children. One token is drawn from it with the noise of its position; if a
child carries that token the walk goes on there, else it ends and the token is next_token. So what
is emitted is always the rule's own draw, and descending is free: a rule whose law, averaged over
the drafts, is the target's law makes every tree exact (induction on depth).

Nodes with equal paths are one place of the walk: independent drafts that share a prefix need no
merging, and stay the multiset that rules such as SpecTr's count on.

A rule holds no coins: where papers accept with probability a and else draw from a residual, it
returns a times the point mass plus (1 - a) times the residual. The law is the same, one draw
replaces them all, and it can be checked by enumeration.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxdecode.core.protocols import TargetOutput, Verifier, Weights
from jaxdecode.core.types import Canvas, Draws, Proposal, Request, Sampling, SparseProbs, Verdict
from jaxdecode.errors import InputError
from jaxdecode.sampling import noise, warp


class Visit(NamedTuple):
    """What a node rule sees.

    Attributes:
        scores: the target's warped scores: log-probabilities up to a constant.
        greedy: the row's temperature is 0: its law is one-hot at the first maximum of `scores`.
        draft_probs: law the children were drawn from; None if nothing was drawn.
        tokens: the children's tokens in draft order; empty unless the rule reads children.
        valid: which of them exist.
        marks: the verifier's own number for each child; None unless it has some.
    """

    scores: Float[Array, "V"]
    greedy: Bool[Array, ""]
    draft_probs: Float[Array, "V"] | None
    tokens: Int[Array, "C"]
    valid: Bool[Array, "C"]
    marks: Float[Array, "C"] | None

    def target_probs(self) -> Float[Array, "V"]:
        """The target's law as probabilities; one-hot for a greedy row."""
        return probs_of(self.scores, self.greedy)


# Scores of the next token's law: log-probabilities up to a constant.
Rule = Callable[[Visit], Float[Array, "V"]]
_WAYS = {
    "with_replacement": "independently (with_replacement)",
    "without_replacement": "without repetition (without_replacement)",
    "likeliest_and_one": "as the likeliest tokens and one more (likeliest_and_one)",
    None: "in a way of its own",
}
# One number per node, from what the target returned.
Marks = Callable[[Weights, Request, Canvas, Proposal, TargetOutput], Float[Array, "B N"]]


def probs_of(scores: Float[Array, "V"], greedy: Bool[Array, ""]) -> Float[Array, "V"]:
    """Warped scores as probabilities; one-hot at the first maximum for a greedy row."""
    sharp = jax.nn.one_hot(jnp.argmax(scores), scores.shape[0], dtype=jnp.float32)
    return jnp.where(greedy, sharp, jax.nn.softmax(scores))


def make(
    rule: Rule,
    *,
    reads_children: bool = True,
    draws: Draws | None = None,
    marks: Marks | None = None,
    taps: tuple[str, ...] = (),
) -> Verifier:
    """The verifier that walks with `rule`.

    Args:
        rule: law of the next token at a node.
        reads_children: whether the rule looks at `tokens` and `valid`.
        draws: how several drafts of one place must have been drawn, for a rule that reads the law
            they were drawn from; None if it does not.
        marks: numbers per node that the rule reads at the children.
        taps: hidden states that `marks` reads.
    """

    def verify(
        weights: Weights,
        request: Request,
        canvas: Canvas,
        proposal: Proposal,
        output: TargetOutput,
    ) -> Verdict:
        if draws is not None:
            check_draft_law(proposal, draws)
        number = None if marks is None else marks(weights, request, canvas, proposal, output)
        num_children = proposal.max_children if reads_children else 0
        walk_row = functools.partial(_walk, rule, num_children)
        scored = output.logits, output.allowed
        return by_row(walk_row, request, canvas, proposal, *scored, number)

    def outcomes(scores, greedy, proposal, marks):
        num_children = proposal.max_children if reads_children else 0
        return _outcomes(rule, num_children, scores, greedy, proposal, marks)

    return Verifier(verify=verify, outcomes=outcomes, taps=taps)


def stops(request: Request, proposal: Proposal) -> Bool[Array, "B N"]:
    """Nodes with a stop token: where it is wrong, it ends the text, so nothing lets it pass."""
    return (proposal.tokens[:, :, None] == request.stop_tokens).any(-1)


def check_draft_law(proposal: Proposal, draws: Draws | None = None) -> None:
    """Refuses drafts without the law that they were drawn from, or drawn in another way."""
    if proposal.draft_probs is None and proposal.max_depth > 0:
        raise InputError(
            "this verifier needs drafts that were drawn from a recorded law, but the drafter "
            "proposes without one; use verifier sample_match."
        )
    if draws is not None and proposal.max_children > 1 and proposal.draws != draws:
        raise InputError(
            f"this verifier is right for drafts that are drawn {_WAYS[draws]}, but the drafter "
            f"draws them {_WAYS[proposal.draws]}; draft one token per place, or use a method that "
            "fits."
        )


def by_row(decide: Callable[..., Any], request: Request, *args: Any) -> Any:
    """`decide(with_noise, key, sampling, *args)` of every row.

    Noise over the vocabulary costs as much as several layers on a CPU: `with_noise` is False when
    all rows are greedy.
    """
    bias = request.sampling.logit_bias
    per_row = dataclasses.replace(request.sampling, logit_bias=None)

    def all_rows(with_noise: bool) -> Any:
        def row(key, sampling, *args):
            sampling = dataclasses.replace(sampling, logit_bias=bias)
            return decide(with_noise, key, sampling, *args)

        return jax.vmap(row)(request.key, per_row, *args)

    sampled = jnp.any(request.sampling.temperature >= warp.GREEDY_BELOW)
    return jax.lax.cond(sampled, lambda: all_rows(True), lambda: all_rows(False))


def seen_tokens(canvas: Canvas, sampling: Sampling, size: int) -> Bool[Array, "V"] | None:
    """Tokens already in a row, for the repetition penalty; None without one."""
    if sampling.repetition_penalty is None:
        return None
    return jnp.zeros(size, bool).at[canvas.tokens].max(~canvas.open)


def _walk(
    rule: Rule,
    num_children: int,
    with_noise: bool,
    key: Array,
    sampling: Sampling,
    canvas: Canvas,
    proposal: Proposal,
    logits: Float[Array, "N V"],
    allowed: UInt32[Array, "N M"] | None,
    marks: Float[Array, "N"] | None,
) -> Verdict:
    greedy = sampling.temperature < warp.GREEDY_BELOW
    candidate = _candidates(proposal)
    seen = seen_tokens(canvas, sampling, logits.shape[-1])

    def visit(carry, depth):
        here, alive, seen, num_accepted = carry  # here: the nodes whose path was walked
        node = jnp.argmax(here)
        row = logits[node]
        child = candidate & _below(proposal, here)
        scores = warp.warp(row, sampling, seen, None if allowed is None else allowed[node])
        scores = rule(_visit(num_children, scores, greedy, proposal, marks, node, child))
        if with_noise:
            position = canvas.length + depth + 1
            gumbel = noise.gumbel(key, position, purpose=noise.TOKEN, size=row.shape[0])
            scores = scores + jnp.where(greedy, 0.0, gumbel)
        token = jnp.argmax(scores).astype(jnp.int32)
        logprob = row[token] - jax.nn.logsumexp(row)
        match = child & (proposal.tokens == token)
        descend = alive & match.any()
        if seen is not None:
            seen = seen.at[token].set(True)
        here = jnp.where(descend, match, here)
        return (here, descend, seen, num_accepted + descend), (token, logprob, node)

    root = jnp.arange(proposal.tokens.shape[0]) == 0
    start = (root, jnp.bool_(True), seen, jnp.int32(0))
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


def _outcomes(
    rule: Rule,
    num_children: int,
    scores: Float[Array, "N V"],
    greedy: Bool[Array, ""],
    proposal: Proposal,
    marks: Float[Array, "N"] | None,
) -> Float[Array, "N V"]:
    """Chance that the walk ends at node n, the first of its path, with next token v."""
    num_nodes, size = scores.shape
    candidate = _candidates(proposal)
    equal = proposal.tokens[:, None] == proposal.tokens

    def visit(carry, node):
        reach, same = carry  # chance to get to a node; [n, m]: they have equal paths
        first = jnp.argmax(same[node]) == node
        child = candidate & _below(proposal, same[node]) & first
        visited = _visit(num_children, scores[node], greedy, proposal, marks, node, child)
        law = probs_of(rule(visited), greedy) * jnp.where(first, reach[node], 0.0)
        reach = jnp.where(child, law[proposal.tokens], reach)
        same = same | (child[:, None] & child & equal)
        # Entries past the vocabulary are dropped.
        goes_on = jnp.where(child, proposal.tokens, size)
        return (reach, same), law.at[goes_on].set(0.0, mode="drop")

    start = (jnp.zeros(num_nodes).at[0].set(1.0), jnp.eye(num_nodes, dtype=bool))
    return jax.lax.scan(visit, start, jnp.arange(num_nodes))[1]


def _candidates(proposal: Proposal) -> Bool[Array, "N"]:
    return proposal.valid if proposal.probe is None else proposal.valid & ~proposal.probe


def _below(proposal: Proposal, here: Bool[Array, "N"]) -> Bool[Array, "N"]:
    return (proposal.parent >= 0) & here[jnp.maximum(proposal.parent, 0)]


def _visit(
    num_children: int,
    scores: Float[Array, "V"],
    greedy: Bool[Array, ""],
    proposal: Proposal,
    marks: Float[Array, "N"] | None,
    node: Int[Array, ""],
    child: Bool[Array, "N"],
) -> Visit:
    (slots,) = jnp.nonzero(child, size=num_children, fill_value=-1)
    laws = proposal.draft_probs
    return Visit(
        scores=scores,
        greedy=greedy,
        draft_probs=None if laws is None else law_at(laws, node, scores.shape[0]),
        tokens=proposal.tokens[slots],
        valid=slots >= 0,
        marks=None if marks is None else marks[slots],
    )


def law_at(
    laws: Float[Array, "N V"] | SparseProbs, node: Int[Array, ""], size: int
) -> Float[Array, "V"]:
    """The law that the children of a node were drawn from; one row."""
    if isinstance(laws, SparseProbs):
        return jnp.zeros(size, jnp.float32).at[laws.tokens[node]].add(laws.probs[node])
    return laws[node]
