"""A policy learns how long the next block shall be, by what longer ones cost and save.

In every text a place is drawn, uniform over its answer; what is before it is known and all of the
answer from there on is masked. The frozen target is asked once, and what it says of the slots ahead
is what the policy reads. Then a block of every size is filled as decoding does it, by its own loop
and rule: `steps` passes per block, the slots of the likeliest candidates first. They take the
text's own tokens, so that their log-probabilities where they were decided add up to that of the
text under this way of filling. A block of n slots and k passes is worth

    mean over its slots of (log p - log p where blocks of the smallest size fill them) - cost * k/n

The second part of the mean is a baseline slot by slot. Without it sizes would be judged by
different slots: a long block that begins in a hard part and ends in an easy one would look good for
reaching it, a short one for ending before a hard part. So hard are slots that depend on each other;
random ones that do not are filled at once for nothing. With rules that decide what is sure enough,
log-probabilities are high by construction and the longest block always wins: so passes are fixed.

There are few sizes, so all are tried, and the policy ascends its expected worth exactly, plus
`explore` times its entropy: nothing is sampled from it. Decoding takes the likeliest size; the
entropy keeps sizes alive whose worth is not yet clear. (arXiv:2505.14455 learns by reinforcement;
what is rewarded here, and how, is ours.) Held-out texts are measured by the sizes that decoding
would take: the loss is their worth, negative.

Cost: passes of the target over a batch, none differentiated: one, `steps` for every size, and
`steps` more for every further smallest block in a longest one; 45 by default.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks, resolve
from jaxdecode.commits import quota
from jaxdecode.core import loop
from jaxdecode.core.protocols import Commit, Method, Models, Verifier, Weights
from jaxdecode.core.types import Candidates, Canvas, Request, Sampling, Window
from jaxdecode.drafters import denoise
from jaxdecode.heads import ctrldiff_blocks
from jaxdecode.sampling import confidence
from jaxdecode.training import denoising, losses, rollouts
from jaxdecode.training.objective import Batch, Objective, Start, heads_only


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        steps: passes per block, as many as decoding will make.
        cost: nats per token that one pass per token is worth.
        explore: weight of the policy's entropy.
    """

    steps: int = 4
    cost: float = 0.1
    explore: float = 0.05

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("steps", self.steps, low=1)
        for name in ("cost", "explore"):
            checks.number(name, getattr(self, name), "at least 0", lambda x: x >= 0)


def make(config: Config, models: Models) -> Objective:
    """The objective of a policy for a frozen target.

    Raises:
        InputError: the target does not fill slots, or has blocks of its own.
    """
    assert models.heads is not None
    model, shape = models.target, models.heads.shape
    asked = denoising.own_setting(model)
    denoise.check_free_ends(models)

    def init(key, weights, texts):
        del texts
        return Start(ctrldiff_blocks.init(shape, model.config, key, weights.target))

    def lesson(params, target_params, batch, key):
        """Log-probabilities of the sizes, what each is worth, and which texts have a place."""
        frozen = jax.lax.stop_gradient(target_params)
        cut, place = cut_at(batch, key)
        law = ctrldiff_blocks.log_probs(shape, params, look(shape, asked, frozen, cut, place))
        exists = rollouts.answers(cut).any(1).astype(jnp.float32)
        return law, worth(config, shape, asked, frozen, cut, place), exists

    def loss(params, target_params, batch, key, moment):
        del moment
        law, value, exists = lesson(params, target_params, batch, key)
        chance = jnp.exp(law)
        entropy = -(chance * law).sum(-1)
        gain = (chance * value).sum(-1)
        found = {"worth": gain, "size": chance @ jnp.float32(shape.sizes), "entropy": entropy}
        found |= {f"worth.{size}": value[:, i] for i, size in enumerate(shape.sizes)}
        metrics = {name: losses.weighted_mean(x, exists) for name, x in found.items()}
        return -losses.weighted_mean(gain + config.explore * entropy, exists), metrics

    def judge(params, target_params, batch, key, moment):
        del moment
        law, value, exists = lesson(params, target_params, batch, key)
        taken = jnp.argmax(law, axis=-1)
        own = jnp.take_along_axis(value, taken[:, None], axis=1)[:, 0]
        size = losses.weighted_mean(jnp.float32(shape.sizes)[taken], exists)
        return -losses.weighted_mean(own, exists), {"size": size}

    return Objective(init=init, loss=loss, export=heads_only, judge=judge, unpacked=True)


def cut_at(batch: Batch, key: Array) -> tuple[Batch, Int[Array, "B"]]:
    """The texts with all before some place given, and that place.

    Args:
        batch: texts, one per row.
        key: of the draw, uniform over the tokens that are filled in.
    """
    counts, index = rollouts.answers(batch), jnp.arange(batch.tokens.shape[1])
    drawn = jnp.where(counts, jax.random.uniform(key, counts.shape), -1.0)
    place = jnp.argmax(drawn, axis=1).astype(jnp.int32)
    weight = jnp.where(index >= place[:, None], batch.weight, 0.0)
    return dataclasses.replace(batch, weight=weight), place


def look(
    shape: ctrldiff_blocks.Shape,
    asked: denoising.Setting,
    params: Any,
    batch: Batch,
    place: Int[Array, "B"],
) -> Float[Array, "B W f"]:
    """What the policy reads at the first pass on a block.

    Args:
        shape: of the policy.
        asked: how the target is asked.
        params: the target's.
        batch: texts, of which all that is to be filled in is masked.
        place: where the block begins.
    """
    open = rollouts.answers(batch)
    hidden = denoising.states(asked, params, batch, open)
    ahead = _ahead(place, shape.longest)
    states = jnp.take_along_axis(hidden, ahead[..., None], axis=1, mode="clip")
    return ctrldiff_blocks.shown(denoising.scores(asked, params, states), _taken(open, ahead))


def worth(
    config: Config,
    shape: ctrldiff_blocks.Shape,
    asked: denoising.Setting,
    params: Any,
    batch: Batch,
    place: Int[Array, "B"],
) -> Float[Array, "B n"]:
    """What a block of each size would be worth at a place; see the file's text for the formula.

    Args:
        config: settings.
        shape: of the policy.
        asked: how the target is asked.
        params: the target's.
        batch: texts, of which all that is to be filled in is masked.
        place: where the block begins.
    """
    smallest, ahead = shape.sizes[0], _ahead(place, shape.longest)
    open = _taken(rollouts.answers(batch), ahead)
    told = functools.partial(told_logprobs, config, asked, params, batch)
    plain = _taken(told(smallest, -(-shape.longest // smallest)), ahead)

    def of(size: int) -> Float[Array, "B"]:
        inside = open & (jnp.arange(shape.longest) < size)
        own = plain if size == smallest else _taken(told(size, 1), ahead)
        num = inside.sum(-1, dtype=jnp.int32)
        gained = jnp.where(inside, own - plain, 0.0).sum(-1)
        return (gained - config.cost * jnp.minimum(num, config.steps)) / jnp.maximum(num, 1)

    return jnp.stack([of(size) for size in shape.sizes], axis=-1)


def told_logprobs(
    config: Config,
    asked: denoising.Setting,
    params: Any,
    batch: Batch,
    size: int,
    num_blocks: int,
) -> Float[Array, "B T"]:
    """Log-probability of the text's tokens where the first blocks decide them; 0 elsewhere.

    Args:
        config: settings.
        asked: how the target is asked.
        params: its parameters.
        batch: texts, of which all that is to be filled in is masked.
        size: of the blocks.
        num_blocks: how many of them are filled at least.
    """
    method, weights = _telling(config, asked, batch, size), Weights(target=params)
    num_rows, width = batch.tokens.shape
    # Nothing is drawn: the text says every token.
    request = Request(
        key=jnp.zeros((num_rows, 2), jnp.uint32),
        sampling=Sampling(temperature=jnp.zeros(num_rows, jnp.float32)),
        stop_tokens=jnp.asarray([-1], jnp.int32),
    )

    def step(_, state):
        return loop.step(weights, request, state, target=asked.model.target, method=method)

    begin = rollouts.begin(method, weights, request, batch)
    num_steps = num_blocks * min(size, config.steps)
    return jax.lax.fori_loop(0, num_steps, step, begin).canvas.logprob[:, :width]


def _telling(config: Config, asked: denoising.Setting, batch: Batch, size: int) -> Method:
    """The seats of decoding with blocks of one size, but that tokens are the text's.

    Which slots come first is said by the target's likeliest tokens, not by those of the text: a
    sampler does not know these.
    """
    models, text = Models(asked.model), jnp.pad(batch.tokens, ((0, 0), (0, 1)))
    rule = quota.make(quota.Config(steps=config.steps), models)

    def verify(weights, request, canvas, proposal, output) -> Candidates:
        del weights, request, canvas
        scores = output.logits.at[..., proposal.mask_token].set(-jnp.inf)
        tokens = confidence.taken(text, proposal)
        logprob = jnp.take_along_axis(jax.nn.log_softmax(scores), tokens[..., None], axis=-1)
        return Candidates(tokens=tokens, logprob=logprob[..., 0], scores=scores)

    def select(
        weights: Weights,
        request: Request,
        canvas: Canvas,
        window: Window,
        candidates: Candidates,
    ):
        best = jax.nn.log_softmax(candidates.scores).max(-1)
        guessed = dataclasses.replace(candidates, logprob=best)
        return rule.select(weights, request, canvas, window, guessed)

    return Method(
        drafter=denoise.make(denoise.Config(block_length=size, reuse="none"), models),
        verifier=Verifier(verify=verify, windows=True),
        cache=resolve.cache("none", asked.model.mesh),
        commit=Commit(select=select),
    )


def _ahead(place: Int[Array, "B"], longest: int) -> Int[Array, "B W"]:
    return place[:, None] + jnp.arange(longest, dtype=jnp.int32)


def _taken(values: Array, slots: Int[Array, "B W"]) -> Any:
    """What arrays over the text hold at some slots; zero past its end."""
    return jnp.take_along_axis(values, slots, axis=1, mode="fill", fill_value=0)
