"""Draft models: their cache, their agreement with the target, other vocabularies, bad input."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import engine as engines
from jaxdecode.errors import InputError
from jaxdecode.trees import draft_lm
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
NEW = 14
LAW = {"temperature": 0.9, "seed": 3}


def after_steps(engine, num_steps, prompts=PROMPTS):
    return toys.after_steps(engine, num_steps, prompts)


def worst_row(state, draft) -> float:
    """Largest difference of the draft model's cache from a fresh pass over the same tokens."""
    keys, values = state.drafter.key, state.drafter.value
    worst = 0.0
    for b in range(len(PROMPTS)):
        # The row before the pending token is made up for by the next step.
        size = max(int(state.canvas.length[b]) - 1, 0)
        _, (fresh_keys, fresh_values) = toys.rows_of(draft, np.asarray(state.canvas.tokens[b]))
        for layer in range(draft.config.num_layers):
            key = keys[layer][b, :, :, :size] - fresh_keys[layer][0, :, :, :size]
            value = values[layer][b, :, :size] - fresh_values[layer][0, :, :size]
            worst = max(worst, float(jnp.abs(key).max()), float(jnp.abs(value).max()))
    return worst


@pytest.mark.parametrize("which", ["same", "other"])
def test_the_cache_is_that_of_a_fresh_pass(which):
    lm = toys.model()
    draft = lm if which == "same" else toys.model(seed=5)
    state = after_steps(toys.drafted(lm, "draft_model", draft, num_draft=2), 6)
    assert state.stats.num_accepted.sum() > 0
    assert worst_row(state, draft) < 1e-4


def test_a_drafter_that_skips_the_row_of_an_accepted_last_draft_is_caught(monkeypatch):
    real = draft_lm.catch_up
    monkeypatch.setattr(draft_lm, "catch_up", lambda *args: real(*args[:-1], 1))
    lm = toys.model()
    assert worst_row(after_steps(toys.drafted(lm, "draft_model", lm, num_draft=3), 6), lm) > 1e-2


@pytest.mark.parametrize("law", [{}, LAW, LAW | {"repetition_penalty": 1.3, "top_k": 7}])
def test_the_target_as_its_own_draft_is_accepted_whole(law):
    lm = toys.model()
    plain = jd.generate(lm, PROMPTS, max_new_tokens=NEW, **law)
    out = jd.generate(lm, PROMPTS, method="draft_model", draft=lm, max_new_tokens=NEW, **law)
    assert out.tokens == plain.tokens
    assert [s.nfe for s in out.stats] == [math.ceil(NEW / 5)] * len(PROMPTS)


def test_confidence_ends_drafts_and_changes_no_token():
    lm, draft = toys.model(), toys.model(seed=5)
    asked = dict(method="draft_model", draft=draft, max_new_tokens=NEW, **LAW)
    free = jd.generate(lm, PROMPTS, **asked)
    shy = jd.generate(lm, PROMPTS, min_prob=0.2, **asked)
    assert shy.tokens == free.tokens
    forwarded = [sum(s.tokens_forwarded for s in out.stats) for out in (free, shy)]
    assert forwarded[1] < forwarded[0]
    for alone, row in zip(PROMPTS, shy.stats, strict=True):
        (same,) = jd.generate(lm, [alone], min_prob=0.2, **asked).stats
        assert same.tokens_forwarded == row.tokens_forwarded, "neighbours change no draft"


def renamed(lm, order):
    """The same model with its tokens in another order."""
    params = dict(lm.params)
    for name, leaf in (("embed", "embedding"), ("head", "kernel")):
        if name in params:
            params[name] = {leaf: params[name][leaf][order]}
    return jd.api.from_params(lm.config, params, name="renamed")


def test_another_numbering_of_the_same_tokens_changes_nothing():
    lm = toys.model()
    order = np.random.default_rng(0).permutation(lm.config.vocab_size)
    to_draft = jnp.asarray(np.argsort(order), jnp.int32)
    state = after_steps(
        toys.drafted(lm, "draft_model", renamed(lm, order), maps=(to_draft, to_draft)), 3
    )
    assert state.stats.num_accepted[:3].tolist() == [12] * 3


def test_tokens_without_a_partner_are_never_drafted_and_drafting_goes_on():
    lm = toys.model()
    partner = jnp.arange(lm.config.vocab_size, dtype=jnp.int32).at[::2].set(-1)
    engine = toys.drafted(lm, "draft_model", lm, maps=(partner, partner))
    plain = engines.Engine(model=engine.model, method=toys.method(lm, "ar"), weights=engine.weights)
    state, reference = after_steps(engine, 60), after_steps(plain, 60)
    np.testing.assert_array_equal(state.canvas.tokens[:3], reference.canvas.tokens[:3])
    accepted = np.asarray(state.stats.num_accepted[:3])
    assert (accepted > 0).all() and (accepted < 40).all()


@pytest.mark.parametrize("size", [50, 80])
def test_padded_vocabularies_are_cut(size):
    lm = toys.model()
    built = toys.config(vocab_size=size)
    draft = jd.api.from_params(built, toys.params(built), name="padded")
    state = after_steps(toys.drafted(lm, "draft_model", draft), 60)
    plain = toys.engine(lm, toys.method(lm, "ar"))
    reference = after_steps(plain, 60)
    np.testing.assert_array_equal(state.canvas.tokens[:3], reference.canvas.tokens[:3])


def test_vocabularies_that_cannot_be_compared_are_refused():
    lm, built = toys.model(), toys.config(vocab_size=50)
    draft = jd.api.from_params(built, toys.params(built), name="smaller")
    with pytest.raises(InputError, match="'smaller' has 50 tokens and 'llama' has 61"):
        jd.generate(lm, [[1]], method="draft_model", draft=draft)
    with pytest.raises(InputError, match="min_prob=2"):
        jd.generate(lm, [[1]], method="draft_model", draft=lm, min_prob=2)
    with pytest.raises(InputError, match="num_draft=0"):
        jd.generate(lm, [[1]], method="draft_model", draft=lm, num_draft=0)
