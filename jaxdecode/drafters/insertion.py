"""A text that grows by insertions: the whole of it goes in, and the next token may go anywhere.

Idea: no slot is undecided. The model sees the tokens that are there, and scores for each of them
what to insert after it. Slots of the canvas are in the order in which tokens came; this drafter
keeps the order in which they are read, and asks about that.

Cost: a pass over the text per token, without reuse.
Source: arXiv:2505.05755 section 3. Differs: the prompt stays whole, so that tokens are inserted
after its last one only.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdecode.core.protocols import Drafter, Models, Weights
from jaxdecode.core.types import Candidates, Canvas, Outputs, Request, Window, pytree
from jaxdecode.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """No options."""


@pytree
class State:
    """The text of a row as it is read.

    Attributes:
        tokens: its tokens; those past its length are meaningless.
        logprob: log-probability with which each was inserted; 0 of the prompt's.
        step: the row's step that inserted it; -1 for the prompt's.
        length: how many there are.
        given: how many the prompt has.
    """

    tokens: Int[Array, "B L"]
    logprob: Float[Array, "B L"]
    step: Int[Array, "B L"]
    length: Int[Array, "B"]
    given: Int[Array, "B"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter."""
    del config
    denoiser = models.target.config.denoiser
    mask_token = 0 if denoiser is None else denoiser.mask_token

    def propose(
        weights: Weights, state: State, request: Request, canvas: Canvas, view: Any
    ) -> tuple[Window, State]:
        del weights, request, view
        zero = jnp.zeros_like(state.length)
        rows = jnp.arange(state.tokens.shape[1], dtype=jnp.int32)
        return Window(
            tokens=state.tokens,
            first=zero,
            num=state.length,
            cached=zero,
            start=canvas.length + 1,
            scored=jnp.broadcast_to(rows, state.tokens.shape),
            open=~canvas.done[:, None],
            step=zero,
            size=jnp.ones_like(zero),
            calls=state.length - state.given,
            mask_token=mask_token,
        ), state

    return Drafter(init=_init, propose=propose, update=_update, outputs=_outputs, prefilled=False,
                   keeps=False)  # fmt: skip


def _init(weights: Weights, request: Request, canvas: Canvas, view: Any, memory: Any) -> State:
    del weights, request, view, memory
    length = np.asarray(canvas.length) + 1
    open = np.asarray(canvas.open)
    if (open != (np.arange(open.shape[1]) >= length[:, None])).any():
        raise InputError(
            "a model that inserts tokens writes where it wants to, so a template's open slots mean "
            "nothing to it; give a prompt, or use a masked diffusion model."
        )
    return State(
        tokens=jnp.array(canvas.tokens),
        logprob=jnp.zeros(open.shape, jnp.float32),
        step=jnp.full(open.shape, -1, jnp.int32),
        length=jnp.asarray(length),
        given=jnp.array(length),
    )


def _update(
    weights: Weights,
    state: State,
    request: Request,
    canvas: Canvas,
    proposal: Window,
    verdict: Candidates,
    output: Any,
) -> State:
    del weights, request, output
    assert verdict.after is not None
    return jax.vmap(_insert)(
        state, canvas.length, proposal.calls, verdict.after[:, 0], verdict.tokens[:, 0],
        verdict.logprob[:, 0],
    )  # fmt: skip


def _insert(
    state: State,
    last: Int[Array, ""],
    step: Int[Array, ""],
    after: Int[Array, ""],
    token: Int[Array, ""],
    logprob: Float[Array, ""],
) -> State:
    """A row's text with its new token, if it got one: what is behind it moves up by one place."""
    place = jnp.arange(state.tokens.shape[0], dtype=jnp.int32)
    grew = last + 1 > state.length

    def put(array: Array, value: Array) -> Array:
        moved = jnp.where(place <= after, array, jnp.roll(array, 1))
        return jnp.where(grew, jnp.where(place == after + 1, value, moved), array)

    return State(
        tokens=put(state.tokens, token),
        logprob=put(state.logprob, logprob),
        step=put(state.step, step),
        length=last + 1,
        given=state.given,
    )


@jax.jit
def _outputs(state: State) -> Outputs:
    return Outputs(
        tokens=state.tokens[:, None],
        logprob=state.logprob[:, None],
        length=state.length[:, None],
        step=state.step[:, None],
    )
