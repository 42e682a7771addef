"""Several slots per pass, one after the other, each told by those before it through one layer.

The target's pass gives the states of all slots of a window. The slot that comes first in the order
takes a draw of the target's law; then a trained layer turns the states, and what has been filled
since, into those that the target would have now, and the next slot is drawn from them; and so on
until `num_joint` slots are filled. Draws and orders are those of as many steps of one slot.

Exactness: L3. With one slot per pass it is `denoise`. With a layer that knew what the target would
say it would be the sampler of one slot per step, token for token; with an untrained one all slots
of a pass are drawn from the laws of its beginning, as if they were independent.
Cost: num_joint - 1 passes of one layer and the target's head over the window per step, which are
not among `tokens_forwarded`. Log-probabilities are those of the law that was drawn from.
Source: arXiv:2509.22738 (ADJUST); the layer is `heads/adjust_joint.py`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.commit import slots
from jaxdecode.core.protocols import Model, Models, TargetOutput, Verifier, Weights
from jaxdecode.core.types import Candidates, Canvas, Request, Window
from jaxdecode.errors import InputError
from jaxdecode.heads import adjust_joint
from jaxdecode.models import extra
from jaxdecode.sampling import confidence
from jaxdecode.sampling.confidence import Order
from jaxdecode.trees import walk
from jaxdecode.verifiers import denoise

# The states that a window's slots would have now: as `states`.
Tell = Callable[[Model, Weights, Float[Array, "B W D"], Window, Canvas], Float[Array, "B W D"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_joint: slots per pass of the target; 1 asks the layer nothing.
        order: which slots come first, as in `quota`.
    """

    num_joint: int = 4
    order: Order = "probability"

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_joint", self.num_joint, low=1, high=64)
        checks.choice("order", self.order, get_args(Order))


class Told(NamedTuple):
    """What a step has filled so far.

    Attributes:
        canvas: the text with it.
        tokens: of all slots of the window: those filled with their own, others with the last draw.
        logprob: log-probabilities of them.
        picked: slots that are filled.
    """

    canvas: Canvas
    tokens: Int[Array, "B W"]
    logprob: Float[Array, "B W"]
    picked: Bool[Array, "B W"]


def make(config: Config, models: Models) -> Verifier:
    """The verifier.

    Raises:
        InputError: the target's embeddings cannot be read.
    """
    if models.target.target.embed is None:
        raise InputError(
            "verifier adjust_joint reads embeddings, and this model has none; use method llada."
        )
    verify = functools.partial(_verify, config, models.target, states)
    return Verifier(verify=verify, windows=True)


def _verify(
    config: Config,
    model: Model,
    tell: Tell,
    weights: Weights,
    request: Request,
    canvas: Canvas,
    proposal: Window,
    output: TargetOutput,
) -> Candidates:
    num = config.num_joint
    hidden = jnp.take_along_axis(output.hidden, proposal.scored[:, :, None], axis=1)
    assert output.logits is not None

    def fill(number: int | Array, told: Told, logits: Float[Array, "B W V"]) -> Told:
        window = dataclasses.replace(
            proposal,
            open=proposal.open & ~told.picked,
            step=proposal.step * num + number,
            calls=proposal.calls * num + number,
        )
        drawn = walk.by_row(denoise.candidates, request, told.canvas, window, logits)
        return _with(told, config.order, request, window, drawn)

    def next_one(number: Array, told: Told) -> Told:
        now = tell(model, weights, hidden, proposal, told.canvas)
        return fill(number, told, model.target.logits(weights.target, now))

    nothing = jnp.zeros_like(proposal.open)
    empty = Told(canvas, nothing.astype(jnp.int32), nothing.astype(jnp.float32), nothing)
    told = fill(0, empty, output.logits)
    told = jax.lax.fori_loop(1, num, next_one, told)
    scores = output.logits.at[..., proposal.mask_token].set(-jnp.inf)
    return Candidates(tokens=told.tokens, logprob=told.logprob, scores=scores, picked=told.picked)


def _with(told: Told, order: Order, request: Request, window: Window, drawn: Candidates) -> Told:
    """One more slot: the first in the order of those that are left."""
    score = confidence.score(order, request, window, drawn)
    now = confidence.best(score, window.open, jnp.ones_like(window.start))
    tokens = jnp.where(told.picked, told.tokens, drawn.tokens)
    logprob = jnp.where(told.picked, told.logprob, drawn.logprob)
    return Told(_put(told.canvas, window, tokens, now), tokens, logprob, told.picked | now)


def _put(
    canvas: Canvas, window: Window, tokens: Int[Array, "B W"], now: Bool[Array, "B W"]
) -> Canvas:
    where = jnp.where(now, slots(window), canvas.tokens.shape[1])
    put = jax.vmap(lambda row, at, values: row.at[at].set(values, mode="drop"))
    return dataclasses.replace(
        canvas, tokens=put(canvas.tokens, where, tokens), open=put(canvas.open, where, ~now)
    )


def states(
    model: Model,
    weights: Weights,
    hidden: Float[Array, "B W D"],
    window: Window,
    canvas: Canvas,
) -> Float[Array, "B W D"]:
    """States of the window's slots by what the canvas holds now."""
    assert model.target.embed is not None
    held = jnp.where(canvas.open, window.mask_token, canvas.tokens)
    embedded = model.target.embed(weights.target, confidence.taken(held, window))
    places = slots(window)
    exists = (places < canvas.end[:, None]).astype(jnp.int32)
    seen = extra.windows(places, exists)
    return adjust_joint.adjusted(model, weights.heads, hidden, embedded, seen)
