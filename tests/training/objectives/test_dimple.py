"""Two phases: the next token first, then masked tokens; each loss written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.masks import MaskProgram
from jaxdecode.core.protocols import Models
from jaxdecode.errors import InputError
from jaxdecode.training.objective import Moment
from jaxdecode.training.objectives import dimple, next_token
from tests import toys
from tests.training import gate
from tests.training.test_denoising import MASK, packed


def loss_at(made, step, batch, key=0):
    """Of a run of ten steps."""
    lm = toys.model()
    moment = Moment(jnp.int32(step), 10)
    value, metrics = jax.jit(made.loss)(lm.params, {}, batch, jax.random.key(key), moment)
    return float(value), metrics


def test_the_first_phase_is_the_next_token():
    made = dimple.make(dimple.Config(mask_token=MASK, causal=0.4), Models(toys.model().bound))
    plain = next_token.make(next_token.Config(), Models(toys.model().bound))
    wanted = loss_at(plain, 0, packed())[0]
    losses = [loss_at(made, step, packed(), key=step)[0] for step in range(10)]
    assert losses[:4] == pytest.approx([wanted] * 4, rel=1e-6)
    assert not np.isclose(losses[4:], wanted, rtol=1e-3).any() and len(set(losses[4:])) == 6


def by_hand(lm, batch, masked):
    """The mean over masked tokens, text by text: each is scored by the state before it."""
    total, count = 0.0, 0
    for row in range(len(batch.tokens)):
        for text in sorted(set(batch.segments[row].tolist()) - {0}):
            at = np.flatnonzero(batch.segments[row] == text)
            tokens, hidden = batch.tokens[row, at], masked[row, at]
            program = MaskProgram(
                cached=jnp.zeros(1, jnp.int32),
                positions=jnp.arange(len(at))[None],
                num_new=jnp.asarray([len(at)]),
                rule="bidirectional",
            )
            noisy = jnp.asarray(np.where(hidden, MASK, tokens))[None]
            states = lm.bound.target.forward(lm.params, noisy, program, None).hidden
            scores = np.array(lm.bound.target.logits(lm.params, states)[0], np.float64)
            scores[:, MASK] = -np.inf
            for i in np.flatnonzero(hidden):
                total += np.log(np.exp(scores[i - 1]).sum()) - scores[i - 1, tokens[i]]
                count += 1
    return total / count


@pytest.mark.parametrize("complementary", [False, True])
def test_the_second_phase_written_out(complementary, monkeypatch):
    lm, batch = toys.model(), jax.tree.map(np.asarray, packed())
    may = (batch.weight > 0) & (batch.positions > 0)
    masked = (np.random.default_rng(0).uniform(size=may.shape) < 0.5) & may
    monkeypatch.setattr(dimple, "drawn", lambda batch, weight, key: jnp.asarray(masked))
    settings = dimple.Config(mask_token=MASK, causal=0.0, complementary=complementary)
    value, metrics = loss_at(dimple.make(settings, Models(lm.bound)), 0, packed())
    wanted = by_hand(lm, batch, masked)
    if complementary:
        wanted = (wanted + by_hand(lm, batch, may & ~masked)) / 2
    assert value == pytest.approx(wanted, rel=1e-4)
    assert float(metrics["masked"]) == pytest.approx(masked.sum() / may.sum())


def test_answers_have_one_time_each():
    """Half is masked in the mean, and as much at one text as its time says: variance 1/12."""
    batch = gate.batch([[7] * 102] * 64, prompt=2)
    masked = np.asarray(dimple.drawn(batch, batch.weight, jax.random.key(0)))
    assert not masked[:, :2].any()
    share = masked[:, 2:].mean(1)
    assert share.mean() == pytest.approx(0.5, abs=0.03)
    assert share.std() == pytest.approx(12**-0.5, abs=0.05)


@pytest.mark.parametrize("causal", [1.0, 0.0])
def test_all_is_learned_but_the_target(causal):
    batch = gate.batch([gate.PROMPT * 2], prompt=4)
    assert gate.learns_alone("dimple", batch, mask_token=MASK, causal=causal)


def test_a_text_is_learned_twice_and_written():
    """The loss falls in both phases, and the loop of `dimple` writes what was learned."""
    lm = toys.model()
    text = [1, 4, 8, 5, 9, 2, 6, 3]
    batch = gate.batch([[3, 7, *text]] * 4, prompt=2)
    made = dimple.make(dimple.Config(mask_token=MASK), Models(lm.bound))
    params, values = gate.train(made, lm, batch, steps=160, lr=1e-2)
    first, second = values[:80], values[80:]
    assert first[-1] < 0.1 * first[0] and second[-20:].mean() < 0.5 * second[:5].mean()
    found = made.export(params, lm.params)
    assert found.denoiser.shifted and found.denoiser.block == 0
    after = jd.api.from_params(toys.config(denoiser=found.denoiser), found.target, name="trained")
    out = jd.generate(after, [3, 7], method="dimple", max_new_tokens=len(text))
    assert out.tokens == [text] and out.stats[0].nfe <= len(text)


def test_settings_that_cannot_be_used():
    for causal in (-0.1, 1.1):
        with pytest.raises(InputError, match="causal"):
            dimple.Config(causal=causal)
    with pytest.raises(InputError, match="mask_token is missing"):
        dimple.make(dimple.Config(), Models(toys.model().bound))
