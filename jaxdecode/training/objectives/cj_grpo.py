"""A model that fills masked tokens learns from rewards for answers that it filled by itself.

For every text `group` answers are filled, step by step, by the parameters at the beginning of the
step. An answer's advantage is its reward less the mean of its group. Every token is then learned
where it was decided: with the same tokens decided and masked as in that step of the rollout. With
r the ratio of its probability now to that in the rollout, A the advantage and q the probability
that the target as it was gives it, the gain of a token with probability p is

    min(r A, clip(r, 1 - clip, 1 + clip) A) - stay * (q / p - log(q / p) - 1)

averaged over the tokens of a step, then over the steps, then over the answers (arXiv:2509.23924,
CJ-GRPO). The optimizer moves `num_moves` times for the same answers; at the first of them r is 1.

Rollouts take the steps of `ass` and the order of `eoser` by default, so that few passes are needed:
one of each text per step, without gradient twice (three times with `stay`), and one with gradient
per step and move. What a reward sees is in `training/rewards.py`.

Differs from the paper: all parameters are trained, in the dtype of the run, not low-rank additions
to 4-bit weights.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.core.types import pytree
from jaxdecode.errors import UnknownNameError, near_matches
from jaxdecode.training import denoising, losses, rollouts, whole
from jaxdecode.training.objective import Batch, Objective
from jaxdecode.training.rewards import REWARDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(rollouts.Config):
    """Settings: how answers are filled, and what is learned from them.

    Attributes:
        reward: what an answer is worth, by its name in `training/rewards.py`.
        group: answers to one text.
        num_moves: of the optimizer, for the answers of one step.
        clip: how far a ratio may be from 1 for its token to gain more.
        stay: weight of the distance from the target as it was; 0 leaves it out.
        mask_token: stands in masked places; None takes the target's own.
        pad_token: stands in padding, which then is filled too, and ends an answer; None gives each
            answer as many tokens as its reference has.
    """

    reward: str = "exact"
    group: int = 6
    num_moves: int = 8
    clip: float = 0.5
    stay: float = 0.04
    mask_token: int | None = None
    pad_token: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
        if self.reward not in REWARDS:
            raise UnknownNameError(
                f"reward {self.reward!r} is not known.{near_matches(self.reward, [*REWARDS])} "
                f"Known: {', '.join(REWARDS)}."
            )
        checks.integer("group", self.group, low=2)
        checks.integer("num_moves", self.num_moves, low=1)
        checks.number("clip", self.clip, "above 0", lambda x: x > 0)
        checks.number("stay", self.stay, "at least 0", lambda x: x >= 0)
        for name in ("mask_token", "pad_token"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), low=0)


@pytree
class Lessons:
    """What is known of answers besides their tokens, for each of them.

    Attributes:
        step: as in `rollouts.Rollout`.
        reward: of the answer.
        advantage: of the answer.
        before: log-probability in the rollout; None where it is that of the move itself.
        reference: log-probability under the target as it was; None where nothing asks for it.
    """

    step: Int[Array, "B T"]
    reward: Float[Array, "B T"]
    advantage: Float[Array, "B T"]
    before: Float[Array, "B T"] | None = None
    reference: Float[Array, "B T"] | None = None


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the target.

    Raises:
        InputError: there is no mask token.
    """
    own = models.target.config.denoiser
    shifted = own is not None and own.shifted
    asked = denoising.setting(models.target, config.mask_token, shifted, own.block if own else 0)

    def rollout(params, target_params, batch, key, moment):
        del moment
        params, target_params = jax.lax.stop_gradient((params, target_params))
        answered, step, reward = _answers(config, asked, params, batch, key, config.group)

        def law(params):
            return rollouts.logprobs(config, asked, params, answered, step)

        wide = jnp.zeros(step.shape)
        lessons = Lessons(
            step=step,
            reward=wide + reward.reshape(-1, 1),
            advantage=wide + advantages(reward).reshape(-1, 1),
            before=law(params) if config.num_moves > 1 else None,
            reference=law(target_params) if config.stay else None,
        )
        return dataclasses.replace(answered, features=lessons)

    def loss(params, target_params, batch, key, moment):
        if batch.features is None:
            batch = rollout(params, target_params, batch, key, moment)
        found = batch.features
        logprob = rollouts.logprobs(config, asked, params, batch, found.step)
        gains, metrics = gain(config, logprob, found)
        means = {name: losses.weighted_mean(x, batch.weight) for name, x in metrics.items()}
        return -losses.weighted_mean(gains, batch.weight), means

    def judge(params, target_params, batch, key, moment):
        del target_params, moment
        reward = _answers(config, asked, params, batch, key, 1)[2].mean()
        return 1 - reward, {"reward": reward}

    return Objective(
        init=whole.of_target,
        loss=loss,
        export=denoising.exporting(asked),
        judge=judge,
        rollout=rollout,
        num_moves=config.num_moves,
        unpacked=True,
    )


def _answers(
    config: Config, asked: denoising.Setting, params: Any, batch: Batch, key: Array, group: int
) -> tuple[Batch, Int[Array, "B*G T"], Float[Array, "B G"]]:
    """`group` answers to each text, one after the other; their steps, and their rewards.

    The weights of the batch are those of the mean over tokens, steps and answers.
    """
    end = config.pad_token
    batch = denoising.filled(dataclasses.replace(batch, features=None), end)
    many = jax.tree.map(lambda leaf: jnp.repeat(leaf, group, axis=0), batch)
    played = rollouts.play(config, asked, params, many, key, end)
    said, wanted = (rollouts.read(tokens, many, end) for tokens in (played.tokens, many.tokens))
    reward = jax.vmap(REWARDS[config.reward])(said, wanted, rollouts.answers(many))
    num_steps = rollouts.bound(config, asked, played.step.shape[1])
    answered = dataclasses.replace(
        many, tokens=played.tokens, weight=rollouts.by_step(played.step, num_steps)
    )
    return answered, played.step, reward.reshape(-1, group)


def advantages(reward: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """Rewards less the mean of their group."""
    return reward - reward.mean(1, keepdims=True)


def gain(
    config: Config, logprob: Float[Array, "B T"], found: Lessons
) -> tuple[Float[Array, "B T"], dict[str, Float[Array, "B T"]]]:
    """What each token gains, and what is reported of it.

    Args:
        config: settings.
        logprob: log-probability of each token now.
        found: what is known of the answers.
    """
    before = jax.lax.stop_gradient(logprob) if found.before is None else found.before
    ratio = jnp.exp(logprob - before)
    held = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    gains = jnp.minimum(ratio * found.advantage, held * found.advantage)
    metrics = {"reward": found.reward, "clipped": (ratio != held).astype(jnp.float32)}
    if found.reference is None:
        return gains, metrics
    apart = found.reference - logprob
    distance = jnp.exp(apart) - apart - 1
    return gains - config.stay * distance, metrics | {"distance": distance}
