"""Block diffusion: one short pass of a small drafter guesses a whole block of tokens.

The drafter's rows are the pending token and masks. They see each other in both directions, and
through its own cache what the target's layers say of every token before: one context row each,
appended once the target has accepted the token. Nothing of a guess is ever kept.

Exactness: L0 under sample_match; drafts are drawn with the noise of their positions.
Cost: one pass of the drafter over a block per step, the target's head on its rows, and a cache of
one row per token and drafter layer.
Source: arXiv:2602.06036; differs: the mask is an embedding of the drafter's own, since targets may
have no mask token; a draft is drawn and not always the likeliest token.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdecode import checks
from jaxdecode.core import masks
from jaxdecode.core.protocols import Drafter, Models, TargetOutput
from jaxdecode.core.types import pytree
from jaxdecode.heads import dflash
from jaxdecode.sampling import guess
from jaxdecode.trees import chain, own_cache, probes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: draft tokens per step: the first of a block; None takes all.
    """

    num_draft: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        if self.num_draft is not None:
            checks.integer("num_draft", self.num_draft, low=1)


@pytree
class State:
    """The drafter's own past.

    Attributes:
        cache: keys and values of context rows.
        length: tokens before the pending one, which have a row each.
    """

    cache: Any
    length: Int[Array, "B"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter."""
    assert models.heads is not None
    shape, model = models.heads.shape, models.target
    target, num_masks = model.target, shape.block - 1
    num = min(config.num_draft or num_masks, num_masks)
    own = dflash.bind(shape, model.config, model.kv_dtype)
    taps = tuple(f"layer.{i}" for i in dflash.layers_of(shape, model.config.num_layers))

    def init(weights, request, canvas, view, memory):
        del weights, request, view, memory
        cache = own_cache.empty(model, own.config, *canvas.tokens.shape)
        # A copy: states are donated, and the canvas is not.
        return State(cache=cache, length=jnp.array(canvas.length))

    def rows_of(weights, output: TargetOutput, start: Int[Array, "B"], nodes=None):
        """Rows of the tokens from `start` on."""
        seen = [output.taps[name] for name in taps]
        seen = seen if nodes is None else [probes.at(tap, nodes) for tap in seen]
        context = own.context(weights.heads, seen)
        positions = start[:, None] + jnp.arange(context.shape[1], dtype=jnp.int32)
        return own.rows(weights.heads, context, positions)

    def absorb(weights, state, canvas, start, num_new, output):
        del canvas
        first = jnp.broadcast_to(start, num_new.shape)
        rows = rows_of(weights, output, first)
        return State(cache=model.cache.write(state.cache, rows, first), length=state.length)

    def propose(weights, state, request, canvas, view):
        del view
        assert target.embed is not None
        first = target.embed(weights.target, chain.pending(canvas))[:, 0]
        x = dflash.enter(weights.heads, first, num_masks=num_masks)
        place = canvas.length[:, None] + jnp.arange(shape.block, dtype=jnp.int32)
        size = jnp.full_like(canvas.length, shape.block)
        program = masks.MaskProgram(
            cached=state.length, positions=place, num_new=size, rule="bidirectional"
        )
        cached, guessed = model.cache.read(state.cache), slice(1, num + 1)
        hidden = own.states(weights.heads, x, program, cached=cached)[:, guessed]
        logits = target.logits(weights.target, hidden)
        drafts = guess.tokens(request, logits, place[:, guessed])
        return chain.propose(canvas, drafts, jnp.ones_like(drafts, bool)), state

    def update(weights, state, request, canvas, proposal, verdict, output):
        del request, proposal
        rows = rows_of(weights, output, state.length, verdict.path)
        cache = model.cache.write(state.cache, rows, state.length)
        return State(cache=cache, length=canvas.length)

    return Drafter(init, propose, update, absorb=absorb, taps=taps, max_depth=num)
