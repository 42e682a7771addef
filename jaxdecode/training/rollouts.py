"""Rollouts: a model fills the answers of texts by itself, and its way through them is kept.

The loop of decoding runs, with the rule of `eoser` and a draw for every slot. Its canvas says which
step decided each token; that is the whole way: before step i the tokens of the steps before it were
decided, and those of step i and later ones were masked.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdecode import checks, resolve
from jaxdecode.commits import late_end, quota
from jaxdecode.core import loop
from jaxdecode.core.protocols import Method, Models, Weights
from jaxdecode.core.types import Canvas, DecodeState, Request, Sampling, Stats, pytree
from jaxdecode.drafters import denoise
from jaxdecode.training import denoising, losses
from jaxdecode.training.objective import Batch
from jaxdecode.verifiers import denoise as judged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How answers are filled.

    Attributes:
        temperature: of the law that tokens are drawn from.
        schedule: how slots are spread over the steps, as in `commits/quota.py`.
        steps: steps per block; 0 is one slot per step, and with "doubling" as many as it takes.
        end_weight: what the probability of an end counts for in the first step, from 0 to 1.
        block_length: slots that are filled before those after them; 0 takes the block that the
            model was trained with, or the whole answer.
    """

    temperature: float = 1.0
    schedule: quota.Schedule = "doubling"
    steps: int = 0
    end_weight: float = 0.01
    block_length: int = 0

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.number("temperature", self.temperature, "above 0", lambda x: x > 0)
        # The method's parts check their own.
        _ = self.rule, self.blocks

    @property
    def rule(self) -> late_end.Config:
        """Which slots come first."""
        return late_end.Config(steps=self.steps, schedule=self.schedule, end_weight=self.end_weight)

    @property
    def blocks(self) -> denoise.Config:
        """Where they are."""
        return denoise.Config(block_length=self.block_length, reuse="none")


@pytree
class Rollout:
    """Texts with answers of the model itself.

    Attributes:
        tokens: token of each place; meaningless where it stayed undecided.
        step: the step that decided it, from 0; -1 for what was given, and the bound on steps for
            what stayed undecided behind an end.
    """

    tokens: Int[Array, "B T"]
    step: Int[Array, "B T"]


def bound(config: Config, asked: denoising.Setting, width: int) -> int:
    """The most steps that an answer within `width` tokens can take."""
    block = min(asked.denoiser.block or config.block_length or width, width)
    most = config.steps or (block.bit_length() if config.schedule == "doubling" else block)
    return -(-width // block) * most


def play(
    config: Config,
    asked: denoising.Setting,
    params: Any,
    batch: Batch,
    key: Array,
    end_token: int | None = None,
) -> Rollout:
    """Fills the tokens that count; one text per row, whose first token is always given.

    Args:
        config: how.
        asked: how the model is asked.
        params: its parameters.
        batch: texts; what is to be filled in is not looked at.
        key: of the draws; rows draw apart.
        end_token: ends an answer; None if none does.

    Raises:
        InputError: blocks that are not the model's.
    """
    num_rows, width = batch.tokens.shape
    method, target = _method(config, asked), asked.model.target
    weights = Weights(target=params)
    request = Request(
        key=jax.random.key_data(jax.random.split(key, num_rows)),
        sampling=Sampling(temperature=jnp.full(num_rows, config.temperature, jnp.float32)),
        stop_tokens=jnp.asarray([-1 if end_token is None else end_token], jnp.int32),
    )
    state = begin(method, weights, request, batch)

    def fill(state: DecodeState) -> DecodeState:
        return loop.step(weights, request, state, target=target, method=method)

    def unfinished(state: DecodeState) -> Bool[Array, ""]:
        return ~state.canvas.done.all()

    done = jax.lax.while_loop(unfinished, fill, state).canvas
    open = done.open[:, :width] & answers(batch)
    step = jnp.where(open, bound(config, asked, width), done.commit_step[:, :width])
    return Rollout(tokens=done.tokens[:, :width], step=step)


def begin(method: Method, weights: Weights, request: Request, batch: Batch) -> DecodeState:
    """The state of the loop before its first step; what is to be filled in is not looked at.

    Args:
        method: seats of the loop; keys and values are not kept.
        weights: their parameters.
        request: of the rows.
        batch: texts, one per row, whose first token is always given.
    """
    canvas, none = _canvas(batch), jnp.zeros(len(batch.tokens), jnp.int32)
    return DecodeState(
        canvas=canvas,
        cache=(),
        drafter=method.drafter.init(weights, request, canvas, None, None),
        stats=Stats(nfe=none, num_accepted=none, tokens_forwarded=none),
        step=jnp.int32(0),
    )


def answers(batch: Batch) -> Bool[Array, "B T"]:
    """The tokens that are filled in: those that count, but for the first of a text."""
    return denoising.learned(batch, True) > 0


def read(tokens: Int[Array, "B T"], batch: Batch, end_token: int | None) -> Int[Array, "B T"]:
    """Texts as a reader sees them: from an answer's first end on there is nothing else."""
    if end_token is None:
        return tokens
    counts = answers(batch)
    ended = jnp.cumsum(counts & (tokens == end_token), axis=1) > 0
    return jnp.where(counts & ended, end_token, tokens)


def logprobs(
    config: Config,
    asked: denoising.Setting,
    params: Any,
    batch: Batch,
    step: Int[Array, "B T"],
) -> Float[Array, "B T"]:
    """Log-probability of each token where and when it was drawn; 0 where none was.

    One pass per step, of which the backward pass keeps the masks only. Steps in which no row
    decided anything cost nothing.

    Args:
        config: how the answers were filled.
        asked: how the model is asked.
        params: its parameters, those of the rollout or others.
        batch: the texts with the tokens of the rollout.
        step: as in `Rollout`.
    """
    num_steps = bound(config, asked, step.shape[1])

    def look(params, number):
        return denoising.states(asked, params, batch, step >= number)

    shape = jax.eval_shape(look, params, 0)

    def add(found, number):
        now = step == number
        hidden = jax.lax.cond(
            now.any(),
            jax.checkpoint(look),
            lambda params, number: jnp.zeros(shape.shape, shape.dtype),
            params,
            number,
        )
        return jnp.where(now[..., None], hidden, found), None

    none = jnp.zeros(shape.shape, shape.dtype)
    hidden = jax.lax.scan(add, none, jnp.arange(num_steps))[0]

    def per_token(states, drawn):
        scores = asked.model.target.logits(params, states).astype(jnp.float32)
        scores = scores.at[..., asked.denoiser.mask_token].set(-1e9) / config.temperature
        return -losses.cross_entropy(scores, drawn)

    drawn = (step >= 0) & (step < num_steps)
    return jnp.where(drawn, losses.over_tokens(per_token, hidden, batch.tokens), 0.0)


def by_step(step: Int[Array, "B T"], num_steps: int) -> Float[Array, "B T"]:
    """Weights under which the tokens of a step weigh alike, and the steps of a row; 1 per row.

    Args:
        step: as in `Rollout`.
        num_steps: the bound on steps.
    """

    def row(step):
        drawn = (step >= 0) & (step < num_steps)
        counts = jnp.zeros(num_steps + 1).at[jnp.where(drawn, step, num_steps)].add(drawn)
        return jnp.where(drawn, 1 / jnp.maximum(counts[step] * (counts > 0).sum(), 1), 0.0)

    return jax.vmap(row)(step)


def _method(config: Config, asked: denoising.Setting) -> Method:
    """The seats of the loop. The model may learn to be asked in another way than its checkpoint
    says.
    """
    model = asked.model
    own = dataclasses.replace(model.config, denoiser=asked.denoiser)
    models = Models(model._replace(config=own))
    return Method(
        drafter=denoise.make(config.blocks, models),
        verifier=judged.make(judged.Config(), models),
        cache=resolve.cache("none", model.mesh),
        commit=late_end.make(config.rule, models),
    )


def _canvas(batch: Batch) -> Canvas:
    """The canvas before the first step; a slot more than the texts have, for a row's end."""
    num_rows, width = batch.tokens.shape
    counts = jnp.pad(answers(batch), ((0, 0), (0, 1)))
    index = jnp.arange(width + 1, dtype=jnp.int32)
    end = jnp.where(counts, index + 1, 0).max(1)
    is_open = counts | (index >= end[:, None])
    none = jnp.zeros(num_rows, jnp.int32)
    return Canvas(
        tokens=jnp.where(is_open, 0, jnp.pad(batch.tokens, ((0, 0), (0, 1)))),
        open=is_open,
        length=jnp.argmax(is_open, axis=1).astype(jnp.int32) - 1,
        end=end,
        done=~counts.any(1),
        finish=none,
        stop_state=none,
        commit_step=jnp.full((num_rows, width + 1), -1, jnp.int32),
        logprob=jnp.zeros((num_rows, width + 1), jnp.float32),
    )
