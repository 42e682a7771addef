"""`denoise` with the next steps tried at once: texts that may come to be, beside the text as it is.

Idea: what the target last wanted in the slots that are still undecided is a good guess of what it
will want. The likeliest j of these guesses filled in, for j = 1, 2, ..., make nested texts. All go
through the target in one pass, each seeing itself only. If the text as it is leads to the first of
them, the step after it is known as well, and so on (`verifiers.nested`). The target's next step is
often right about the tokens and not about their order, so with `num_choices` w a step may fill any
of the w likeliest guesses that are left: texts are all sets of d guesses among the first d + w - 1.

Guesses that were wanted before the last token was decided do not know of it, nor of each other.
With `reach` they do: each is what the sampler would do next if its scores were those of before plus
what the tokens filled in since add to the slots beside them, by a table of pairs that the model was
asked for once (`models.pairs`).

Exactness: L0 against `llada` with the same blocks and reuse: every step that is taken is a step of
it, only several per pass. In the first pass on a block, which renews keys and values, nothing is
tried.
Cost: a pass takes in the window once more for each text that is tried (`sets`); with reuse "prefix"
as many times the text. The table takes a pass over `4 * reach + 1` slots per token of the
vocabulary, once per loaded model.
Source: arXiv:2510.00294, whose texts are those of one choice, without a table. There the first text
is committed before the pass and its step after it; here both are in the same pass, so that a pass
takes at least one step.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

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
from jaxdecode.models import pairs
from jaxdecode.sampling import confidence
from jaxdecode.trees import drawn, walk

# Texts in one pass, besides the text as it is.
MAX_TEXTS = 255
# Largest vocabulary whose pairs are asked for where nothing is said of them.
MAX_AUTO = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(denoise.Config):
    """Options: those of `denoise`, and three more.

    Attributes:
        num_draft: steps that are tried besides the next one.
        num_choices: guesses that each of them may be.
        reach: slots on each side of a token for which guesses know of it; 0: none. "auto" is 2 for
            vocabularies of at most 2,048 tokens, whose table is small, and 0 for others.
    """

    num_draft: int = 3
    num_choices: int = 1
    reach: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
        checks.integer("num_draft", self.num_draft, low=0, high=63)
        checks.integer("num_choices", self.num_choices, low=1, high=63)
        if isinstance(self.reach, str) and self.reach != "auto":
            raise InputError(f'reach={self.reach!r} is not known; use "auto" or a number of slots.')
        if self.reach != "auto":
            checks.integer("reach", self.reach, low=0, high=16)
        num_texts = math.comb(self.num_draft + self.num_choices, self.num_choices) - 1
        if num_texts > MAX_TEXTS:
            raise InputError(
                f"num_draft={self.num_draft} with num_choices={self.num_choices} tries "
                f"{num_texts:,} texts in one pass, at most {MAX_TEXTS} are possible: lower one."
            )


@pytree
class State:
    """Where a row is, and the guesses of its next steps.

    Attributes:
        place: where it is.
        slot: the slot of the block that each of R guesses fills, -1 where there is none.
        token: with what.
    """

    place: denoise.State
    slot: Int[Array, "B R"]
    token: Int[Array, "B R"]


def make(config: Config, models: Models) -> Drafter:
    """The drafter; errors as of `denoise.make`."""
    plan, base = denoise.plan_of(config, models), denoise.make(config, models)
    texts, reach = sets(config), _reach(config, models)
    ahead, prepare = _by_rank, None
    if reach and texts.size:
        ahead, prepare = _in_turn, functools.partial(_prepare, models, reach)
    return base._replace(
        prepare=prepare,
        init=functools.partial(_init, base, texts.shape[1]),
        propose=functools.partial(_propose, base, plan, texts),
        score=functools.partial(_score, models),
        update=functools.partial(_update, base, ahead),
    )


def _reach(config: Config, models: Models) -> int:
    if config.reach != "auto":
        return config.reach
    return 2 if models.target.config.vocab_size <= MAX_AUTO else 0


def _prepare(models: Models, reach: int, weights: Weights) -> Weights:
    """The weights with the table of pairs."""
    model = models.target
    size, how = model.config.vocab_size, model.config.denoiser
    table = pairs.asked(weights.target, target=model.target, denoiser=how, size=size, reach=reach)
    return weights._replace(drafter=table)


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
    num_guesses: int,
    weights: Weights,
    request: Request,
    canvas: Canvas,
    view: Any,
    memory: Any,
) -> State:
    shape = (canvas.tokens.shape[0], num_guesses)
    return State(
        place=base.init(weights, request, canvas, view, memory),
        slot=jnp.full(shape, -1, jnp.int32),
        token=jnp.zeros(shape, jnp.int32),
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
    num_texts = len(texts)
    # Guesses exist from the second step on a block; the last slot is left to the text as it is.
    left = window.open.sum(-1, dtype=jnp.int32)[:, None]
    at = jnp.arange(window.open.shape[1]) == state.slot[..., None]
    exists = (at & window.open[:, None]).any(-1) & (window.step > 0)[:, None]
    valid = (texts.sum(-1) < left) & (exists[:, None] | ~texts).all(-1)
    filled = (at[:, None] & texts[:, :, None]).any(2)
    tokens = jnp.where(at, state.token[..., None], 0).sum(1)
    # Every text has rows of its own for all that a step takes in.
    whole = plan.reuse in ("none", "prefix")
    width = num_slots if whole else plan.block + plan.shift
    nested = Nested(
        tokens=_texts(window, tokens, filled, width),
        guesses=jnp.broadcast_to(texts, (len(left), *texts.shape)),
        slot=state.slot,
        token=state.token,
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
    nested, own = proposal.nested, proposal.tokens
    assert nested is not None
    num_texts, width = nested.tokens.shape[1:]
    num_rows = min(width, own.shape[1])
    part = _first_rows(program, num_rows)

    def read(tokens: Int[Array, "B T"], program: MaskProgram) -> TargetOutput:
        return models.target.target.forward(weights.target, tokens, program, view, taps)

    if not num_texts:
        return read(own, program)
    texts, apart = nested.tokens[..., :num_rows], own.shape[1] > num_rows
    if not apart:
        texts = jnp.concatenate([texts, own[:, None]], axis=1)
    # All texts read the same keys and values: over them, not over rows of one text, is one product.
    tried = jax.vmap(lambda tokens: read(tokens, part), in_axes=1)(texts)
    # A row whose block begins takes in more than its neighbours' texts have.
    output = read(own, program) if apart else jax.tree.map(lambda x: x[-1], tried)

    def joined(of_texts: Float[Array, "J B T D"], of_own: Array) -> Float[Array, "B M D"]:
        rows = jnp.pad(of_texts[:num_texts], ((0, 0), (0, 0), (0, width - num_rows), (0, 0)))
        return jnp.concatenate([*rows, of_own], axis=1)

    # Only rows of the text as it is are cached: they are those of a step of `denoise`.
    return dataclasses.replace(
        output,
        hidden=joined(tried.hidden, output.hidden),
        taps=jax.tree.map(joined, tried.taps, output.taps),
    )


def _first_rows(program: MaskProgram, num_rows: int) -> MaskProgram:
    """The program of the first rows of a window."""
    return dataclasses.replace(
        program,
        positions=program.positions[:, :num_rows],
        num_new=jnp.minimum(program.num_new, num_rows),
    )


def _update(
    base: Drafter,
    ahead: Callable[..., tuple[Array, Array]],
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
    calls = verdict.picked.sum(-1, dtype=jnp.int32)
    later = dataclasses.replace(
        proposal, open=proposal.open & ~verdict.picked, calls=proposal.calls + calls
    )
    slot, token = ahead(state.slot.shape[1], weights, request, canvas, later, verdict)
    place = dataclasses.replace(place, calls=state.place.calls + calls)
    return State(place=place, slot=slot, token=token)


def _by_rank(
    num_guesses: int, weights: Any, request: Any, canvas: Any, window: Window, verdict: Candidates
) -> tuple[Int[Array, "B R"], Int[Array, "B R"]]:
    """Slots in the order of the last pass, with the tokens that it wanted there."""
    del weights, request, canvas
    # By probability as `llada` has it: of log-probabilities, more are different.
    rank = confidence.rank(jnp.exp(verdict.logprob), window.open)
    at = (rank[:, None] == jnp.arange(num_guesses)[:, None]) & window.open[:, None]
    slot = jnp.argmax(at, axis=-1).astype(jnp.int32)
    token = jnp.take_along_axis(verdict.tokens, slot, axis=1)
    return jnp.where(at.any(-1), slot, -1), token


def _in_turn(
    num_guesses: int,
    weights: Weights,
    request: Request,
    canvas: Canvas,
    window: Window,
    verdict: Candidates,
) -> tuple[Int[Array, "B R"], Int[Array, "B R"]]:
    """Steps of the plain sampler, its scores told of each new token by the table alone."""
    assert verdict.last is not None
    fill = functools.partial(pairs.added, weights.drafter)
    row = jnp.arange(len(verdict.last))
    scores = fill(verdict.scores, verdict.last, verdict.tokens[row, verdict.last])
    open, slots, tokens = window.open, [], []
    for number in range(num_guesses):
        text = dataclasses.replace(window, calls=window.calls + number)
        wanted = walk.by_row(drawn.candidates, request, canvas, text, scores)
        slot = jnp.argmax(jnp.where(open, jnp.exp(wanted.logprob), -1.0), axis=-1)
        slots.append(jnp.where(open.any(-1), slot, -1).astype(jnp.int32))
        tokens.append(wanted.tokens[row, slot])
        open &= jnp.arange(open.shape[1]) != slot[:, None]
        scores = fill(scores, slot, tokens[-1])
    return jnp.stack(slots, 1), jnp.stack(tokens, 1)
