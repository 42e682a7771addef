"""`denoise` with the next steps tried at once: texts that may come to be, beside the text as it is.

Idea: what the target last wanted in the slots that are still undecided is a good guess of what it
will want. The likeliest j of these guesses filled in, for j = 1, 2, ..., make nested texts. All go
through the target in one pass, each seeing itself only. If the text as it is leads to the first of
them, the step after it is known as well, and so on (`verifiers.nested`). The target's next step is
often right about the tokens and not about their order, so with `num_choices` w a step may fill any
of the w likeliest guesses that are left: texts are all sets of d guesses among the first d + w - 1.

Exactness: L0 against `llada` with the same blocks and reuse: every step that is taken is a step of
it, only several per pass. In the first pass on a block, which renews keys and values, nothing is
tried.
Cost: a pass takes in the window once more for each text that is tried (`sets`); with reuse "prefix"
as many times the text.
Source: arXiv:2510.00294, whose texts are those of one choice. There the first text is committed
before the pass and its step after it; here both are in the same pass, so that a pass takes at least
one step.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Drafter, Models, TargetOutput, Weights
from jaxdecode.core.types import Candidates, Canvas, Nested, Request, Window, pytree
from jaxdecode.drafters import denoise
from jaxdecode.errors import InputError
from jaxdecode.sampling import confidence

# Texts in one pass, besides the text as it is.
MAX_TEXTS = 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(denoise.Config):
    """Options: those of `denoise`, and two more.

    Attributes:
        num_draft: steps that are tried besides the next one.
        num_choices: guesses that each of them may be.
    """

    num_draft: int = 3
    num_choices: int = 1

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
        checks.integer("num_draft", self.num_draft, low=0, high=63)
        checks.integer("num_choices", self.num_choices, low=1, high=63)
        num_texts = math.comb(self.num_draft + self.num_choices, self.num_choices) - 1
        if num_texts > MAX_TEXTS:
            raise InputError(
                f"num_draft={self.num_draft} with num_choices={self.num_choices} tries "
                f"{num_texts:,} texts in one pass, at most {MAX_TEXTS} are possible: lower one."
            )


@pytree
class State:
    """Where a row is, and what its target last wanted in the slots of the block."""

    place: denoise.State
    tokens: Int[Array, "B W"]
    logprob: Float[Array, "B W"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter; errors as of `denoise.make`."""
    plan, base = denoise.plan_of(config, models), denoise.make(config, models)
    return base._replace(
        init=functools.partial(_init, base, plan),
        propose=functools.partial(_propose, base, plan, sets(config)),
        score=functools.partial(_score, models),
        update=functools.partial(_update, base),
    )


def sets(config: Config) -> Bool[np.ndarray, "J R"]:
    """Which guesses, by rank, each text has that is tried; those with fewer first."""
    width = config.num_draft + config.num_choices - 1 if config.num_draft else 0
    chosen = [
        np.isin(np.arange(width), ranks)
        for size in range(1, config.num_draft + 1)
        for ranks in itertools.combinations(range(size + config.num_choices - 1), size)
    ]
    return np.array(chosen, bool).reshape(len(chosen), width)


def _init(
    base: Drafter,
    plan: denoise.Plan,
    weights: Weights,
    request: Request,
    canvas: Canvas,
    view: Any,
    memory: Any,
) -> State:
    batch, num_slots = canvas.tokens.shape
    shape = (batch, plan.block or num_slots)
    return State(
        place=base.init(weights, request, canvas, view, memory),
        tokens=jnp.zeros(shape, jnp.int32),
        logprob=jnp.zeros(shape, jnp.float32),
    )


def _propose(
    base: Drafter,
    plan: denoise.Plan,
    texts: Bool[np.ndarray, "J R"],
    weights: Weights,
    state: State,
    request: Request,
    canvas: Canvas,
    view: Any,
) -> tuple[Window, State]:
    window, place = base.propose(weights, state.place, request, canvas, view)
    num_slots = canvas.tokens.shape[1]
    num_texts, num_guesses = texts.shape
    # Guesses exist from the second step on a block; the last slot is left to the text as it is.
    left = window.open.sum(-1, dtype=jnp.int32)[:, None]
    valid = (texts.sum(-1) < left) & (window.step > 0)[:, None]
    valid &= (texts * np.arange(1, num_guesses + 1)).max(-1, initial=0) <= left
    # By probability as `llada` has it: of log-probabilities, more are different.
    rank = confidence.rank(jnp.exp(state.logprob), window.open)
    guessed = rank[:, None] == np.arange(num_guesses)[:, None]
    slot = jnp.where(guessed.any(-1), jnp.argmax(guessed, axis=-1), -1).astype(jnp.int32)
    # Every text has rows of its own for all that a step takes in.
    whole = plan.reuse in ("none", "prefix")
    width = num_slots if whole else plan.block + plan.shift
    filled = window.open[:, None] & (texts[:, :, None] & guessed[:, None]).any(2)
    nested = Nested(
        tokens=_texts(window, state.tokens, filled, width),
        guesses=jnp.broadcast_to(texts, (len(left), *texts.shape)),
        slot=slot,
        token=jnp.take_along_axis(state.tokens, jnp.maximum(slot, 0), axis=1),
        valid=valid,
    )
    # Texts that are tried stand before the text as it is, whose rows vary in number.
    own = num_texts * width + window.scored
    tried = window.scored[:, None] + width * np.arange(num_texts)[:, None]
    scored = jnp.concatenate([own[:, None], tried], axis=1).reshape(len(own), -1)
    return dataclasses.replace(window, nested=nested, scored=scored), dataclasses.replace(
        state, place=place
    )


def _texts(
    window: Window, guesses: Int[Array, "B W"], filled: Array, width: int
) -> Int[Array, "B J M"]:
    """The first `width` rows of the window with guesses in the slots that are filled."""

    def row(tokens, first, start, guesses, filled):
        index = jnp.arange(width) + first - start
        inside = (index >= 0) & (index < len(guesses))
        at = jnp.clip(index, 0, len(guesses) - 1)
        return jnp.where(inside & filled[:, at], guesses[at], tokens[:width])

    return jax.vmap(row)(window.tokens, window.first, window.start, guesses, filled)


def _score(
    models: Models,
    weights: Weights,
    proposal: Window,
    program: MaskProgram,
    view: Any,
    taps: tuple[str, ...],
) -> TargetOutput:
    nested = proposal.nested
    assert nested is not None
    batch, num_texts, width = nested.tokens.shape
    tokens = jnp.concatenate([nested.tokens.reshape(batch, -1), proposal.tokens], axis=1)
    forward = models.target.target.forward
    output = forward(weights.target, tokens, beside(program, proposal), view, taps)
    # Only rows of the text as it is are cached: they are those of a step of `denoise`.
    rows = tuple(
        jax.tree.map(lambda x, axis=axis: _behind(x, num_texts * width, axis), part)
        for part, axis in zip(output.rows, (-1, -2), strict=True)
    )
    return dataclasses.replace(output, rows=rows)


def _behind(rows: Array, start: int, axis: int) -> Array:
    return jax.lax.slice_in_dim(rows, start, rows.shape[axis], axis=axis)


def beside(program: MaskProgram, window: Window) -> MaskProgram:
    """The program of all texts, those that are tried first; none sees another."""
    assert window.nested is not None
    batch, num_texts, width = window.nested.tokens.shape
    num_rows = program.positions.shape[1]
    index = jnp.arange(width, dtype=jnp.int32)
    where = (window.first[:, None] + index)[:, None]
    positions = jnp.broadcast_to(where, (batch, num_texts, width)).reshape(batch, -1)
    # Padding is a text of its own that nobody reads.
    tried = jnp.arange(1, num_texts + 1, dtype=jnp.int32)[:, None]
    exists = window.nested.valid[..., None] & (index < window.num[:, None])[:, None]
    tried = jnp.where(exists, tried, num_texts + 1).reshape(batch, -1)
    own = jnp.where(jnp.arange(num_rows) < window.num[:, None], 0, num_texts + 1)
    return dataclasses.replace(
        program,
        positions=jnp.concatenate([positions, program.positions], axis=1),
        num_new=jnp.full_like(program.num_new, num_texts * width + num_rows),
        segments=jnp.concatenate([tried, own.astype(jnp.int32)], axis=1),
    )


def _update(
    base: Drafter,
    weights: Weights,
    state: State,
    request: Request,
    canvas: Canvas,
    proposal: Window,
    verdict: Candidates,
    output: Any,
) -> State:
    place = base.update(weights, state.place, request, canvas, proposal, verdict, output)
    assert verdict.picked is not None
    # As many steps of `denoise` as slots were decided: noise is keyed by their number.
    calls = state.place.calls + verdict.picked.sum(-1, dtype=jnp.int32)
    return State(
        place=dataclasses.replace(place, calls=calls),
        tokens=verdict.tokens,
        logprob=verdict.logprob,
    )
