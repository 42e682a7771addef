"""Next-token training of a draft model: the loss against NumPy, and drafts that become right."""

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.protocols import Models
from jaxdecode.errors import InputError
from jaxdecode.evals import toys as smallest
from jaxdecode.training.objectives import fastdraft
from tests import toys
from tests.training import gate

STEPS = 120


def law_of(lm, row):
    scores = toys.full_logits(lm, row)[0].astype(np.float64)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_loss_is_its_formula(share):
    row = gate.PROMPT
    own, taught = (law_of(lm, row)[:-1] for lm in (toys.model(seed=5), toys.model()))
    error = -np.mean([np.log(own[i, token]) for i, token in enumerate(row[1:])])
    apart = (taught * np.log(taught / own)).sum(-1).mean()
    found, metrics = gate.first_loss("fastdraft", gate.batch([row]), law=share)
    assert found == pytest.approx((1 - share) * error + share * apart, rel=1e-4)
    assert metrics["error"] == pytest.approx(error, rel=1e-4)
    assert ("divergence" in metrics) == (share > 0)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_draft_model_learns_and_the_target_does_not(share):
    assert gate.learns_alone("fastdraft", gate.batch([gate.PROMPT]), law=share)


def test_the_overfit_gate():
    assert gate.passes("fastdraft", depth=4, steps=STEPS)


def test_the_gate_can_fail():
    assert not gate.passes("fastdraft", depth=4, steps=2)


def test_a_trained_draft_model_drafts_with_a_trimmed_head_too():
    """The tokens of the text are in the trimmed head: as many drafts are accepted as without."""
    target, given = gate.trained("fastdraft", steps=STEPS)
    text = gate.PROMPT + gate.text()
    asked = {"max_new_tokens": 45, "draft": given["draft"]}
    whole = jd.generate(target, gate.PROMPT, method="draft_model", **asked)
    cut = {"keep": len(set(text)), "calibration": tuple(text)}
    trimmed = jd.generate(target, gate.PROMPT, method="vocabtrim", **cut, **asked)
    assert cut["keep"] < target.config.vocab_size
    assert trimmed.tokens == whole.tokens and trimmed.stats[0].nfe == whole.stats[0].nfe == 9
    none = jd.generate(target, gate.PROMPT, method="vocabtrim", keep=1, **asked)
    assert none.tokens == whole.tokens and none.stats[0].nfe > 20


@pytest.mark.slow
def test_samples_of_the_target_teach_its_law():
    """On prompts that were not trained on, and also where drafts are drawn."""
    table = np.random.default_rng(0).dirichlet(np.full(8, 0.3), size=8) + 0.01
    target = smallest.markov(table / table.sum(-1, keepdims=True))
    sizes = dict(vocab_size=8, num_layers=1, layer_windows=(0,), hidden_size=16)
    config = toys.config(**sizes)
    draft = jd.api.from_params(config, toys.params(config, 3), name="draft")
    prompts = [[i % 8, (3 * i) % 7, i % 5] for i in range(64)]
    law = {"temperature": 1.0, "max_new_tokens": 24, "batch_size": 64}
    asked, held_out = prompts[:48], prompts[48:]
    answers = jd.generate(target, asked, seed=1, **law).tokens
    data = gate.batch([[*a, *b] for a, b in zip(asked, answers, strict=True)], prompt=3)
    made = fastdraft.make(fastdraft.Config(), Models(target.bound, draft.bound))
    params, _ = gate.train(made, target, data, steps=60, lr=1e-2, draft=draft)
    trained = jd.api.from_params(config, made.export(params, target.params).draft)

    def steps(model):
        asked = {"method": "speculative_sampling", "draft": model, "seed": 2, **law}
        return sum(stats.nfe for stats in jd.generate(target, held_out, **asked).stats)

    assert steps(trained) < 0.7 * steps(draft)


def test_settings_are_checked():
    with pytest.raises(InputError, match=r"law=1\.5"):
        fastdraft.Config(law=1.5)
