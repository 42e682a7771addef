"""Rewards for own answers: advantages, ratios and clipping by hand, and a reward that rises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdecode.core.protocols import Models, Weights
from jaxdecode.errors import InputError, UnknownNameError
from jaxdecode.training import config as configs
from jaxdecode.training import denoising, losses, rollouts, setup, step
from jaxdecode.training.objectives import cj_grpo
from jaxdecode.training.objectives.cj_grpo import Lessons
from tests.training import gate, runs
from tests.training.test_rollouts import MASK, small, texts


def lessons(**parts):
    """Of one answer; zeros where nothing is said."""
    shape = (1, len(next(iter(parts.values()))))
    filled = {name: jnp.asarray(part, jnp.float32).reshape(shape) for name, part in parts.items()}
    zeros = jnp.zeros(shape)
    return Lessons(**{"step": zeros, "reward": zeros, "advantage": zeros} | filled)


def test_advantages_by_hand():
    found = cj_grpo.advantages(jnp.asarray([[1.0, 0, 0, 1], [1, 1, 1, 1], [1, 0, 0, 0]]))
    wanted = [[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]]
    np.testing.assert_allclose(found, wanted)


def test_gains_by_hand():
    """Ratios 2, 2, 0.2, 0.2 and 1.25, advantages of both signs, clipped at 0.5."""
    ratio, sign = [2, 2, 0.2, 0.2, 1.25], [1, -1, 1, -1, 1]
    config = cj_grpo.Config(clip=0.5, stay=0.0)
    found = lessons(before=[0.0] * 5, advantage=sign)

    def gains(logprob):
        return cj_grpo.gain(config, logprob, found)[0]

    logprob = jnp.log(jnp.asarray([ratio]))
    np.testing.assert_allclose(gains(logprob)[0], [1.5, -2, 0.2, -0.5, 1.25], rtol=1e-6)
    slope = jax.grad(lambda x: gains(x).sum())(logprob)
    # Where it is clipped, a token learns nothing; else its slope is r A.
    np.testing.assert_allclose(slope[0], [0, -2, 0.2, 0, 1.25], rtol=1e-6)
    clipped = cj_grpo.gain(config, logprob, found)[1]["clipped"]
    assert clipped[0].tolist() == [1, 1, 1, 1, 0]


def test_distance_by_hand():
    """Half as likely as under the reference: 2 - ln 2 - 1; as likely: 0."""
    config = cj_grpo.Config(stay=0.5)
    found = lessons(before=[0.0, 0.0], reference=np.log([0.5, 0.25]))
    gains, metrics = cj_grpo.gain(config, jnp.log(jnp.asarray([[0.25, 0.25]])), found)
    np.testing.assert_allclose(metrics["distance"][0], [1 - np.log(2), 0], atol=1e-6)
    np.testing.assert_allclose(gains[0], [-0.5 * (1 - np.log(2)), 0], atol=1e-6)


@pytest.fixture(scope="module")
def first():
    """A small model, and what a batch becomes at the beginning of a step."""
    lm = small()
    made = cj_grpo.make(cj_grpo.Config(reward="share", group=4, num_moves=2), Models(lm.bound))
    run = jax.jit(
        lambda params: made.rollout(params, params, texts(), jax.random.key(3), gate.MOMENT)
    )
    return lm, run(lm.params)


@pytest.fixture(scope="module")
def slopes(first):
    """Loss and metrics, and the gradients of the trained parameters and of the target's."""
    lm, batch = first
    settings = cj_grpo.Config(reward="share", group=4, num_moves=2, clip=0.9)
    made = cj_grpo.make(settings, Models(lm.bound))

    def loss(params, target):
        return made.loss(params, target, batch, jax.random.key(0), gate.MOMENT)

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    return lambda params: run(params, lm.params)


def test_groups_answer_one_text_each(first):
    _, batch = first
    found = batch.features
    assert batch.tokens.shape == (8, 7)
    reward, advantage = (np.asarray(x[:, 0]).reshape(2, 4) for x in (found.reward, found.advantage))
    np.testing.assert_allclose(advantage, reward - reward.mean(1, keepdims=True), atol=1e-7)
    assert np.ptp(reward) > 0
    np.testing.assert_allclose(batch.weight.sum(1), 1, rtol=1e-6)
    right = np.asarray(batch.tokens)[:4, 2:6] == [3, 4, 5, 6]
    np.testing.assert_allclose(reward[0], right.mean(1))
    assert len(np.unique(np.asarray(batch.tokens)[:4], axis=0)) > 1, "they are drawn apart"


def test_the_first_move_is_that_of_plain_policy_gradients(first, slopes):
    """Ratios are 1 and nothing is clipped: the gradient is that of the mean of A log p."""
    lm, batch = first
    asked, found = denoising.own_setting(lm.bound), batch.features

    def plain(params):
        logprob = rollouts.logprobs(cj_grpo.Config(), asked, params, batch, found.step)
        return -losses.weighted_mean(found.advantage * logprob, batch.weight)

    (value, metrics), (own, target) = slopes(lm.params)
    assert float(metrics["clipped"]) == 0 and float(metrics["distance"]) < 1e-10
    assert float(value) == pytest.approx(0, abs=1e-6), "advantages of a group add up to nothing"
    wanted = jax.jit(jax.grad(plain))(lm.params)
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert float(jnp.abs(b).max()) > 1e-4, "every leaf is learned"
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(target))


def test_slopes_are_differences(first, slopes):
    """Along the gradient, by central differences, a little away from where answers were made."""
    lm, _ = first
    params = jax.tree.map(lambda x: x * 1.01, lm.params)
    (_, metrics), (own, _) = slopes(params)
    norm, far = optax.tree.norm(own), 1e-3

    def at(far):
        moved = jax.tree.map(lambda x, slope: x + far * slope / norm, params, own)
        return float(slopes(moved)[0][0])

    assert float(metrics["clipped"]) == 0 and float(metrics["distance"]) > 1e-6
    assert (at(far) - at(-far)) / (2 * far) == pytest.approx(float(norm), rel=0.02)


def test_the_reward_rises():
    """Four prompts, each with an answer of its own; two moves for the answers of each step."""
    lm, steps = small(), 80
    settings = cj_grpo.Config(reward="share", group=12, num_moves=2, stay=0.01)
    made = cj_grpo.make(settings, Models(lm.bound))
    rows = [[a, 0, (a + 1) % 4, 4 + a] for a in range(4)]
    batch = jax.tree.map(jnp.asarray, gate.batch(rows, prompt=2))
    optimizer = step.optimizer_of(configs.Optimizer(lr=2e-3, final=1.0), steps, made.num_moves)
    parts = step.divide(made.init(jax.random.key(0), Weights(lm.params), None))
    run = jax.jit(step.make(made, optimizer, dtype=jnp.float32, num_steps=steps))
    state, rewards = step.begin(parts, optimizer), []
    for _ in range(steps):
        state, metrics = run(state, parts.held, lm.params, batch, jax.random.key(0))
        rewards.append(float(metrics["reward"]))
    assert np.mean(rewards[:3]) < 0.3 and np.mean(rewards[-5:]) > 0.55, rewards


def test_held_out_texts_are_measured_by_what_answers_lack():
    """The mask token is never drawn, so that nothing is right here."""
    lm = small()
    made = cj_grpo.make(cj_grpo.Config(reward="share"), Models(lm.bound))
    batch = jax.tree.map(jnp.asarray, gate.batch([[1, 2, MASK, MASK]], prompt=2))
    left, found = jax.jit(made.judge)(lm.params, {}, batch, jax.random.key(1), gate.MOMENT)
    assert float(left) == 1 and float(found["reward"]) == 0


def test_what_cannot_be_used(tmp_path):
    for settings in (
        {"group": 1},
        {"num_moves": 0},
        {"clip": 0.0},
        {"stay": -1},
        {"pad_token": -1},
    ):
        with pytest.raises(InputError, match=next(iter(settings))):
            cj_grpo.Config(**settings)
    with pytest.raises(UnknownNameError, match="reward 'exakt' is not known. Did you mean 'exact'"):
        cj_grpo.Config(reward="exakt")
    content = runs.config(tmp_path, recipe="cj_grpo", shape={}, objective={"mask_token": 95})
    with pytest.raises(InputError, match="a row for each text; set data.pack to false"):
        setup.build(configs.of(content))
