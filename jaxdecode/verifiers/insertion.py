"""Where the next token goes, and which it is: a draw from the model's law of both.

A row's scores of all places and tokens have one softmax. The place is drawn from its marginal, the
token from the warped law at that place; greedy rows take the likeliest place, and there the
likeliest token. When the first token's score of the mask token says that the text is whole, with
a probability above a threshold, a stop token is put at its end.

Exactness: at temperature 1 place and token together have the model's law. Log-probabilities are of
place and token. Stop tokens and the mask token are never inserted.
Cost: none besides the pass; scores are of all rows of the text.
Source: arXiv:2505.05755 section 3 and appendix (sampling of the place by its marginal). Differs:
the score of the stop head is that of a token which is otherwise never written, the mask token, at
the first position: a linear function of its hidden state, as a head would be.
"""

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Models, TargetOutput, Verifier, Weights
from jaxdecode.core.types import Candidates, Canvas, Request, Sampling, Window
from jaxdecode.sampling import noise, warp
from jaxdecode.trees import walk

Place = Literal["drawn", "likeliest"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        place: how sampled rows choose where to insert: "drawn" from the model's law, or the
            "likeliest" place.
        stop_threshold: probability above which the text is whole, in (0, 1]; at 1 it never is.
    """

    place: Place = "drawn"
    stop_threshold: float = 0.9

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.choice("place", self.place, get_args(Place))
        checks.number(
            "stop_threshold", self.stop_threshold, "a number in (0, 1]", lambda x: 0 < x <= 1
        )


def make(config: Config, models: Models) -> Verifier:
    """The verifier."""
    del models
    return Verifier(verify=functools.partial(_verify, config), windows=True)


def _verify(
    config: Config,
    weights: Weights,
    request: Request,
    canvas: Canvas,
    proposal: Window,
    output: TargetOutput,
) -> Candidates:
    del weights
    num_given = (~canvas.open & (canvas.commit_step < 0)).sum(-1)
    rows = jnp.arange(proposal.tokens.shape[1])
    # After the last token of the prompt, and after all that were inserted.
    places = (rows >= num_given[:, None] - 1) & (rows < proposal.num[:, None])
    draw = functools.partial(_draw, config, request.stop_tokens)
    return walk.by_row(draw, request, canvas, proposal, places, output.logits)


def _draw(
    config: Config,
    stop_tokens: Int[Array, "E"],
    with_noise: bool,
    key: Array,
    sampling: Sampling,
    canvas: Canvas,
    window: Window,
    places: Bool[Array, "N"],
    logits: Float[Array, "N V"],
) -> Candidates:
    """The insertion of one row."""
    size = logits.shape[-1]
    never = jnp.where(stop_tokens < 0, size, stop_tokens)
    scores = logits.at[:, window.mask_token].set(-jnp.inf).at[:, never].set(-jnp.inf, mode="drop")
    joint = jax.nn.log_softmax(jnp.where(places[:, None], scores, -jnp.inf), axis=(0, 1))
    marginal = jax.nn.logsumexp(joint, axis=-1)
    gumbel = None
    if with_noise:
        gumbel = noise.gumbel(key, window.start, purpose=noise.TOKEN, size=size)
        if config.place == "drawn":
            uniform = noise.turns(key, jnp.arange(len(places)), window.calls)
            coins = -jnp.log(-jnp.log(jnp.maximum(uniform, jnp.finfo(jnp.float32).tiny)))
            marginal += jnp.where(sampling.temperature < warp.GREEDY_BELOW, 0.0, coins)
    after = jnp.argmax(marginal).astype(jnp.int32)
    token = warp.draw(scores[after], sampling, walk.seen_tokens(canvas, sampling, size), gumbel)
    logprob = joint[after, token]
    whole = jax.nn.sigmoid(logits[0, window.mask_token])
    stops = (whole > config.stop_threshold) & (stop_tokens[0] >= 0)
    return Candidates(
        tokens=jnp.where(stops, stop_tokens[0], token)[None],
        logprob=jnp.where(stops, jnp.log(whole), logprob)[None],
        scores=scores[after][None],
        picked=jnp.ones(1, bool),
        after=jnp.where(stops, window.num - 1, after)[None],
    )
