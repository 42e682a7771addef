"""Drafts of slots that are decided in a fixed order: each is kept with chance target / draft law.

The target has scored every slot of the order given the slots before it, drafts among them. So the
first slot's law is its law given the text; if its draft is kept, the second's is as well, and so
on. The first draft that is refused gives way to a draw from the residual, and a slot after the last
draft to a draw from the target. What is decided ends there. The slots after it get draws from laws
that have seen refused drafts: no text, but drafts for the next pass.

Exactness: L1 against one slot per pass in the same order, for drafts drawn from the recorded law;
that law may depend on all that was drawn before. Coins are part of the law, as in `trees.walk`.
Cost: two draws per slot over the vocabulary.
Source: arXiv:2504.20456, algorithm 1.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdecode.core.commit import slots
from jaxdecode.core.protocols import Models, TargetOutput, Verifier, Weights
from jaxdecode.core.types import Candidates, Canvas, Drafted, Request, Sampling, Window
from jaxdecode.errors import InputError
from jaxdecode.sampling import noise, warp
from jaxdecode.trees import walk
from jaxdecode.verifiers import rejection


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """No options."""


def make(config: Config, models: Models) -> Verifier:
    """The verifier."""
    del config, models
    return by_rule(_rejection)


def by_rule(rule: walk.Rule) -> Verifier:
    """The verifier with another law of a slot given its draft, which is the only child it sees."""
    return Verifier(verify=functools.partial(_verify, rule), windows=True)


def _rejection(visit: walk.Visit) -> Float[Array, "V"]:
    return jnp.log(rejection.law(visit, once=False))


def _verify(
    rule: walk.Rule,
    weights: Weights,
    request: Request,
    canvas: Canvas,
    proposal: Window,
    output: TargetOutput,
) -> Candidates:
    del weights, canvas
    if proposal.drafted is None:
        raise InputError(
            "verifier ranked judges slots that drafter any_subset puts in order; use denoise."
        )
    decide = functools.partial(_decide, rule)
    return walk.by_row(decide, request, proposal, output.logits)


def _decide(
    rule: walk.Rule,
    with_noise: bool,
    key: Array,
    sampling: Sampling,
    window: Window,
    logits: Float[Array, "W V"],
) -> Candidates:
    """Candidates of one row."""
    num_slots, size = logits.shape
    assert window.drafted is not None
    scores = logits.at[:, window.mask_token].set(-jnp.inf)
    greedy = sampling.temperature < warp.GREEDY_BELOW

    def draw(row, position, draft):
        warped = warp.warp(row, sampling, None)
        visit = walk.Visit(
            scores=warped,
            greedy=greedy,
            draft_probs=draft.probs,
            tokens=draft.tokens[None],
            valid=draft.valid[None],
            marks=None,
        )
        laws = jnp.stack([rule(visit), warped])
        if with_noise:
            drawn = noise.again(key, position, window.calls, size=size)
            laws = laws + jnp.where(greedy, 0.0, drawn)
        found = jnp.argmax(laws, axis=-1).astype(jnp.int32)
        return found, row[found] - jax.nn.logsumexp(row)

    drafted = _padded(window.drafted, num_slots)
    (judged, fresh), logprob = jax.vmap(draw, out_axes=1)(scores, slots(window), drafted)
    kept = drafted.valid & (judged == drafted.tokens)
    # A slot is decided if the drafts of all slots before it were kept.
    reached = jnp.cumsum(~kept) - ~kept == 0
    return Candidates(
        tokens=jnp.where(reached, judged, fresh),
        logprob=jnp.where(reached, *logprob),
        scores=scores,
        picked=reached & window.open,
    )


def _padded(drafted: Drafted, num_slots: int) -> Drafted:
    """Drafts for all slots, of which the last ones do not exist."""

    def pad(array):
        rest = num_slots - array.shape[0]
        return jnp.pad(array, ((0, rest), *((0, 0),) * (array.ndim - 1)))

    return jax.tree.map(pad, drafted)
