"""The target learns to fill masked tokens, from all others at once.

Every text has a time t, spread evenly over the rows of a batch; at t a token is masked with
probability 1 - alpha(t), by itself. Loss: weight(t) times the cross-entropy of the masked tokens,
summed and divided by the number of tokens that count; this bounds the negative log-likelihood per
token (`training/schedules.py` has both weights). Which paper's it is:

    MDLM  schedule="loglinear"                      arXiv:2406.07524 equation 10
    MD4   any schedule; `num_steps` of its time     arXiv:2406.04329 equations 4 and 6
    LLaDA schedule="linear", times=(0.001, 1.0): weight 1 / p of a rate p; pre-training with
          per="token"; after prompts per="text" (each answer by its own length) and `pad_token`,
          which turns padding into ends of text that are learned: so a model learns where answers
          end (arXiv:2502.09992 equations 3 and 5)

A prompt is never masked. Held-out texts are measured by the bound over all times.

Differs from the papers: time is no input of the model (MDLM's "carry-over" parametrisation needs
none), and the mask token, which is inside the vocabulary, gets no probability.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.errors import InputError
from jaxdecode.training import denoising, losses, schedules, whole
from jaxdecode.training.objective import Objective

# Smallest time: a text of which nothing is masked teaches nothing, and its weight has no bound.
FIRST = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        mask_token: stands in masked places; None takes the target's own.
        shifted: the state of a place scores the token after it, as in autoregressive models.
        schedule: "linear", "polynomial", "cosine" or "loglinear".
        power: of "polynomial".
        num_steps: T of discrete time; None is continuous.
        times: first and last time that is drawn, in continuous time.
        per: whether tokens weigh alike, or texts.
        pad_token: stands in padding, which then is learned; None leaves padding out. Needs
            data.pack=false.
    """

    mask_token: int | None = None
    shifted: bool = False
    schedule: schedules.Kind = "linear"
    power: float = 2.0
    num_steps: int | None = None
    times: tuple[float, float] = (FIRST, 1.0)
    per: Literal["token", "text"] = "token"
    pad_token: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        for name in ("mask_token", "pad_token"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), low=0)
        schedules.check(self.schedule)
        checks.number("power", self.power, "above 0", lambda x: x > 0)
        if self.num_steps is not None:
            checks.integer("num_steps", self.num_steps, low=1)
        check_times(self.times)
        if self.per not in ("token", "text"):
            raise InputError(f"per={self.per!r} is not known; use 'token' or 'text'.")


def check_times(times: tuple[float, float]) -> None:
    """Refuses a range of times that is none."""
    if len(times) != 2 or not 0 < times[0] < times[1] <= 1:
        raise InputError(f"times={times!r} is not valid; give 0 < first < last <= 1.")


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the target.

    Raises:
        InputError: there is no mask token.
    """
    asked = denoising.setting(models.target, config.mask_token, config.shifted, 0)
    return objective(config, asked)


def objective(config: Config, asked: denoising.Setting) -> Objective:
    """The objective for a model asked in one way or another; blocks have their own times."""
    schedule = schedules.of(config.schedule, config.power)

    def bound(params, batch, key, times):
        level, mask = jax.random.split(key)
        batch = denoising.filled(batch, config.pad_token)
        weight = denoising.learned(batch, asked.denoiser.shifted)
        group = denoising.groups(batch, asked.denoiser.block)
        t = schedules.antithetic(level, *batch.tokens.shape)
        if config.num_steps is None:
            t = times[0] + (times[1] - times[0]) * t
            scale = schedule.weight(t)
        else:
            t = (jnp.floor(t * config.num_steps) + 1) / config.num_steps
            scale = schedule.step_weight(t, config.num_steps)
        t, scale = (jnp.take_along_axis(x, group, axis=1) for x in (t, scale))
        masked = denoising.drawn(mask, 1 - schedule.alpha(t), weight)
        hidden = denoising.states(asked, params, batch, masked)
        errors, hits = denoising.read(asked, params, hidden, batch.tokens)
        values, found = errors * scale * masked, denoising.metrics(hits, masked, weight)
        if config.per == "text":
            return denoising.per_text(values, batch, weight), found
        return losses.weighted_mean(values, weight), found

    def loss(params, target_params, batch, key, moment):
        del target_params, moment
        return bound(params, batch, key, config.times)

    def judge(params, target_params, batch, key, moment):
        del target_params, moment
        return bound(params, batch, key, (FIRST, 1.0))

    return Objective(
        init=whole.of_target, loss=loss, export=denoising.exporting(asked), judge=judge
    )
