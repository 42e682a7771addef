"""Several whole texts per step, of which a left-to-right model picks one.

Slots that are filled in one pass are drawn as if they were independent. So k texts are drawn, each
open slot from the target's law q of it, and one of them is picked with chances

    softmax(-E / T),    E = log q(text) - log p(text),

where p is an autoregressive model's law of the whole text. The commit rule then takes as many of
its slots as it would have taken of a single draw.

Exactness: L3; with one candidate it is `denoise`. With T = 1 the weights p / q are those of
self-normalised importance sampling: as k grows, the picked text gets the law p given what is
decided, as far as q reaches.
Cost: k passes of the autoregressive model over the whole text per step, one after the other, so
that one text's scores are in memory at a time; it keeps no cache, as any slot may have changed.
Source: arXiv:2410.21357 sections 3 and 4 (residual energy of an autoregressive model). Differs: q
is the law that was drawn from, also where temperature or filters have changed it; time is the share
of the block's slots that are undecided.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Models, TargetOutput, Verifier, Weights
from jaxdecode.core.types import Candidates, Canvas, Request, Sampling, Window
from jaxdecode.errors import InputError
from jaxdecode.sampling import confidence, noise, warp
from jaxdecode.trees import draft_lm, walk
from jaxdecode.verifiers import denoise

# Log-probability of a token that a model never writes: finite, so that no candidate is NaN.
_NEVER = -1e3
# Energies of candidate texts: (weights, canvas, window, texts, output).
Energies = Callable[..., Float[Array, "B k"]]
# From energies and their temperature to log weights.
Weigh = Callable[[Float[Array, "B k"], float], Float[Array, "B k"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_candidates: k, texts that are drawn per step; 1 is `denoise`.
        energy_temperature: T, > 0; lower is closer to the text of the least energy.
        energy_start: share of undecided slots down from which texts are weighed; 1 is all.
        energy_end: share of undecided slots below which they no longer are.
    """

    num_candidates: int = 2
    energy_temperature: float = 1.0
    energy_start: float = 1.0
    energy_end: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_candidates", self.num_candidates, low=1)
        checks.number(
            "energy_temperature", self.energy_temperature, "a number > 0", lambda x: x > 0
        )
        for name in ("energy_start", "energy_end"):
            checks.number(name, getattr(self, name), "a number in [0, 1]", lambda x: 0 <= x <= 1)
        if self.energy_end > self.energy_start:
            raise InputError(
                f"energy_end={self.energy_end} is above energy_start={self.energy_start}, so no "
                "step would weigh texts; the share of undecided slots falls from start to end."
            )


class Texts(NamedTuple):
    """Candidate texts of every row.

    Attributes:
        tokens: what each puts into the slots of the window.
        logprob: log-probability of that under the target, before the warp.
        law: the same under the law that was drawn from.
        scores: the target's scores.
    """

    tokens: Int[Array, "B k W"]
    logprob: Float[Array, "B k W"]
    law: Float[Array, "B k W"]
    scores: Float[Array, "B W V"]


def make(config: Config, models: Models) -> Verifier:
    """The verifier.

    Raises:
        InputError: there is no draft model, or it has no law of a whole text.
    """
    if models.draft is None:
        raise InputError(
            "verifier energy weighs texts by a second model, which was not given; use method edlm "
            "with draft=jd.load(...)."
        )
    if models.draft.config.denoiser is not None:
        raise InputError(
            "the draft model fills undecided slots, so it has no law of a whole text; pass one "
            "that writes one token after the other."
        )
    if config.num_candidates == 1:
        return denoise.make(denoise.Config(), models)
    energies = functools.partial(_energy, draft_lm.bind(models))
    return Verifier(verify=functools.partial(verify, config, energies, log_weights), windows=True)


def log_weights(energy: Float[Array, "B k"], temperature: float) -> Float[Array, "B k"]:
    """Less energy is more weight."""
    return -energy / temperature


def verify(
    config: Config,
    energies: Energies,
    weigh: Weigh,
    weights: Weights,
    request: Request,
    canvas: Canvas,
    proposal: Window,
    output: TargetOutput,
) -> Candidates:
    """The text of every row that is picked by its energy."""
    num = config.num_candidates
    texts = walk.by_row(functools.partial(_draw, num), request, canvas, proposal, output.logits)
    undecided = proposal.open.sum(-1) / jnp.maximum(proposal.size, 1)
    acts = (undecided <= config.energy_start) & (undecided >= config.energy_end)
    acts &= proposal.open.any(-1)

    def pick() -> Int[Array, "B"]:
        energy = energies(weights, canvas, proposal, texts, output)
        coins = jax.vmap(functools.partial(noise.pick, num=num))(request.key, proposal.calls)
        return jnp.argmax(weigh(energy, config.energy_temperature) + coins, -1)

    picked = jax.lax.cond(acts.any(), pick, lambda: jnp.zeros(acts.shape, jnp.int32))
    picked = jnp.where(acts, picked, 0)[:, None, None]

    def chosen(x: Array) -> Array:
        return jnp.take_along_axis(x, picked, axis=1)[:, 0]

    return Candidates(
        tokens=chosen(texts.tokens), logprob=chosen(texts.logprob), scores=texts.scores
    )


def _draw(
    num: int,
    with_noise: bool,
    key: Array,
    sampling: Sampling,
    canvas: Canvas,
    window: Window,
    logits: Float[Array, "W V"],
) -> Texts:
    """Those of one row; the first is the one that `denoise` draws."""

    def one(key):
        drawn = denoise.candidates(with_noise, key, sampling, canvas, window, logits)
        return drawn.tokens, drawn.logprob

    tokens, logprob = jax.vmap(one)(noise.texts(key, num))
    scores = logits.at[:, window.mask_token].set(-jnp.inf)
    seen = walk.seen_tokens(canvas, sampling, logits.shape[-1])
    warped = jax.vmap(warp.warp, in_axes=(0, None, None))(scores, sampling, seen)
    laws = jax.nn.log_softmax(warped)
    law = jnp.take_along_axis(laws, tokens.T, axis=-1).T
    return Texts(tokens, logprob, law, scores)


def _energy(
    draft: draft_lm.DraftModel,
    weights: Weights,
    canvas: Canvas,
    window: Window,
    texts: Texts,
    output: TargetOutput | None,
) -> Float[Array, "B k"]:
    """Log of the law that the texts were drawn from, less that of the autoregressive model."""
    del output
    if weights.drafter.to_draft is not None:
        raise InputError(
            "texts are weighed token by token, but the draft model splits text into other tokens "
            "than the target; pass a draft model of the same vocabulary."
        )
    drawn = jnp.where(window.open[:, None], texts.law, 0.0).sum(-1)

    def written(tokens: Int[Array, "B W"]) -> Float[Array, "B"]:
        return _log_likelihood(draft, weights, canvas, window, tokens)

    return drawn - jax.lax.map(written, jnp.moveaxis(texts.tokens, 1, 0)).T


def _log_likelihood(
    draft: draft_lm.DraftModel,
    weights: Weights,
    canvas: Canvas,
    window: Window,
    tokens: Int[Array, "B W"],
) -> Float[Array, "B"]:
    """What the autoregressive model gives a text from its first candidate token on."""
    num_slots = canvas.tokens.shape[1]
    where = jnp.where(window.open, confidence.slots(window), num_slots)
    put = jax.vmap(lambda row, slots, values: row.at[slots].set(values, mode="drop"))
    text = put(canvas.tokens, where, tokens)
    ours = put(jnp.zeros_like(canvas.open), where, jnp.ones_like(window.open))
    output = draft_lm.forward(draft, weights, None, text, jnp.zeros_like(canvas.length))
    scores = draft_lm.scores(draft, weights, output.hidden[:, :-1])
    chosen = jnp.take_along_axis(scores, text[:, 1:, None], axis=-1)[..., 0]
    logprob = jnp.maximum(chosen - jax.nn.logsumexp(scores, axis=-1), _NEVER)
    judged = _judged(canvas, ours, draft.model.config.max_length)
    return jnp.where(judged[:, 1:], logprob, 0.0).sum(-1)


def _judged(canvas: Canvas, ours: Bool[Array, "B L"], max_length: int) -> Bool[Array, "B L"]:
    """Slots whose probability tells candidates apart: from the first of theirs to where text ends.

    Text ends before the first slot that no candidate fills, and with the context of the model.
    """
    known = jnp.cumprod(~canvas.open | ours, axis=-1).astype(bool)
    begun = jnp.cumsum(ours, axis=-1) > 0
    return known & begun & (jnp.arange(canvas.tokens.shape[1]) < max_length)
