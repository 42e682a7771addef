"""The walk down nested texts: as many steps of the plain sampler as were tried rightly.

The text as it is leads to a step: its likeliest slot takes its candidate. Where a text that was
tried has just that filled in, that text is what the plain sampler would see next, and its own step
is known too; and so on. What is decided is the steps of all texts that were reached.

Exactness: L0 against one slot per pass; the draws of a step are those of that step.
Source: arXiv:2510.00294.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode.core.protocols import Models, TargetOutput, Verifier, Weights
from jaxdecode.core.types import Candidates, Canvas, Nested, Request, Window
from jaxdecode.errors import InputError
from jaxdecode.trees import walk
from jaxdecode.verifiers import denoise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """No options."""


def make(config: Config, models: Models) -> Verifier:
    """The verifier."""
    del config, models
    return by_rule(_reached)


def by_rule(reached: Callable[..., Bool[Array, ""]]) -> Verifier:
    """The verifier with another rule for which texts were tried rightly."""
    return Verifier(verify=functools.partial(_verify, reached), windows=True)


def _verify(
    reached, weights: Weights, request: Request, canvas: Canvas, proposal: Window,
    output: TargetOutput,
) -> Candidates:  # fmt: skip
    del weights
    assert output.logits is not None
    if proposal.nested is None:
        raise InputError(
            "verifier nested judges the texts that drafter freedave nests; use denoise."
        )
    batch, width = proposal.open.shape
    logits = output.logits.reshape(batch, -1, width, output.logits.shape[-1])
    wanted = []
    # A text with d guesses is what is there after d steps, and has the noise of that step.
    taken = jnp.pad(proposal.nested.guesses.sum(-1, dtype=jnp.int32), ((0, 0), (1, 0)))
    for number in range(logits.shape[1]):
        text = dataclasses.replace(proposal, calls=proposal.calls + taken[:, number])
        wanted.append(walk.by_row(denoise.candidates, request, canvas, text, logits[:, number]))
    tokens = jnp.stack([each.tokens for each in wanted], axis=1)
    logprob = jnp.stack([each.logprob for each in wanted], axis=1)
    walked = jax.vmap(functools.partial(_walk, reached))
    found = walked(proposal.open, proposal.nested, tokens, logprob)
    scores = jnp.take_along_axis(logits, found.text[:, None, None, None], axis=1)[:, 0]
    return Candidates(
        tokens=found.tokens,
        logprob=found.logprob,
        scores=scores.at[..., proposal.mask_token].set(-jnp.inf),
        picked=found.picked & proposal.open,
        last=found.last,
    )


def _reached(
    nested: Nested, have: Bool[Array, "R"], slot: Int[Array, ""], token: Int[Array, ""]
) -> Bool[Array, "J"]:
    """Which text a step leads to from that with the guesses `have`: one, or none that was tried."""
    new = (nested.slot == slot) & (nested.token == token) & ~have
    return nested.valid & new.any() & (nested.guesses == (have | new)).all(-1)


class Walk(NamedTuple):
    """How far a row has come, by its texts; of all rows with a leading axis.

    Attributes:
        tokens: of all slots, those that are decided with their own step's.
        logprob: likewise.
        picked: slots that are decided.
        text: the last text that was reached; 0 is the text as it is.
        last: the slot that its step decides.
    """

    tokens: Int[Array, "W"]
    logprob: Float[Array, "W"]
    picked: Bool[Array, "W"]
    text: Int[Array, ""]
    last: Int[Array, ""]


def _walk(
    reached,
    open: Bool[Array, "W"],
    nested: Nested,
    tokens: Int[Array, "K W"],
    logprob: Float[Array, "K W"],
) -> Walk:
    """The steps of one row."""
    num_guesses = nested.guesses.shape[-1]
    alive, picked, at = jnp.bool_(True), jnp.zeros_like(open), jnp.int32(0)
    have, last = jnp.zeros(num_guesses, bool), jnp.int32(0)
    found = tokens[0], logprob[0]
    for _ in range(num_guesses + 1):
        left = open & ~picked
        slot = jnp.argmax(jnp.where(left, jnp.exp(logprob[at]), -jnp.inf)).astype(jnp.int32)
        last = jnp.where(alive, slot, last)
        # What is still undecided is told by the last text that was reached.
        fresh = alive & ~picked
        found = jnp.where(fresh, tokens[at], found[0]), jnp.where(fresh, logprob[at], found[1])
        picked |= (jnp.arange(len(open)) == slot) & left & alive
        if num_guesses:
            next_text = reached(nested, have, slot, tokens[at, slot])
            which = jnp.argmax(next_text).astype(jnp.int32)
            alive &= next_text.any()
            at = jnp.where(alive, which + 1, at)
            have = nested.guesses[which]
    return Walk(*found, picked, at, last)
