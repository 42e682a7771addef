"""TriForce: a budget that holds the text drafts the target's text; choices equal a NumPy top-k."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import engine, options
from jaxdecode.core import loop
from jaxdecode.drafters import triforce
from jaxdecode.errors import InputError
from jaxdecode.models import decoder
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5] * 9, [9], [2, 6, 5, 3, 5, 8, 9, 7, 9] * 3]
LAWS = [{}, {"temperature": 0.8, "seed": 4}]
TINY = dict(budget=8, chunk=3, recent=4, refresh=5, num_draft=3)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_budget_that_holds_the_text_is_always_right(name, law):
    lm = toys.model(name)
    asked = dict(budget=80, chunk=4, recent=6, refresh=7, num_draft=4)
    out = jd.generate(lm, PROMPTS, method="triforce", max_new_tokens=21, **asked, **law)
    assert [stats.nfe for stats in out.stats] == [5, 5, 5], "21 tokens in steps of 5, one short"
    assert out.tokens == jd.generate(lm, PROMPTS, method="ar", max_new_tokens=21, **law).tokens


@pytest.mark.parametrize("law", LAWS)
def test_a_tiny_budget_costs_steps_and_no_token(law):
    lm = toys.model()
    asked = dict(max_new_tokens=30, **law)
    out = jd.generate(lm, PROMPTS, method="triforce", **TINY, **asked)
    assert out.tokens == jd.generate(lm, PROMPTS, method="ar", **asked).tokens
    assert sum(stats.nfe for stats in out.stats) > 3 * 8, "some drafts fail"


def test_a_row_proposes_in_a_batch_what_it_proposes_alone():
    lm = toys.model()
    asked = dict(method="triforce", max_new_tokens=25, **TINY)
    together = jd.generate(lm, PROMPTS, **asked)
    for b, prompt in enumerate(PROMPTS):
        assert jd.generate(lm, [prompt], **asked).steps[0] == together.steps[b]


def chosen_by_hand(key, length, config):
    """Chunks for one head and the positions it sees, the slow way."""
    recent = max(length - config.recent, 0) // config.chunk * config.chunk
    chunks = [range(i, i + config.chunk) for i in range(0, recent, config.chunk)]
    fit = [key[:, chunk].mean(1) @ key[:, length - 1] for chunk in chunks]
    order = sorted(range(len(chunks)), key=lambda i: (i != 0, -fit[i]))
    best = sorted(order[: (config.budget - config.recent) // config.chunk])
    return best, [position for i in best for position in chunks[i]] + list(range(recent, length))


@pytest.mark.parametrize("length", [0, 1, 7, 12, 16, 17, 40, 61])
def test_choice_is_a_numpy_top_k(length):
    config = triforce.Config(**{**TINY, "budget": 14})
    for seed in range(5):
        key = np.random.default_rng(seed).normal(size=(8, 64)).astype(np.float32)
        best, positions = chosen_by_hand(key, length, config)
        at = jnp.int32(length)
        chunks = triforce.choose(jnp.asarray(key), at, config)
        assert chunks[: len(best)].tolist() == best
        # Two positions were added since.
        slots = triforce.slots(chunks, at, config.num_slots, config)
        seen = slots[: triforce.count(at + 2, at, config)].tolist()
        assert seen == [*positions, length, length + 1]
        assert len(positions) <= config.budget + config.chunk - 1
        assert len(positions) == length or length > config.budget


@pytest.mark.parametrize("length", range(0, 200, 7))
def test_no_row_outgrows_its_slots(length):
    config = triforce.Config(**TINY)
    at = jnp.int32(length)
    assert triforce.count(at + config.refresh - 1, at, config) <= config.num_slots


def states(lm, stacked, num_steps):
    """The decode states of a long run, one for every step."""
    params = dict(lm.params)
    if stacked:
        params["layers"] = decoder.stack(params["layers"])
    built = toys.engine(lm, toys.method(lm, "triforce", **TINY), params)
    request = toys.request(lm, options.Options(), PROMPTS)
    state = engine.prefilled(built, request, PROMPTS, 60)
    for _ in range(num_steps):
        state = loop.run(
            built.weights,
            request,
            state,
            jnp.int32(1),
            target=built.model.target,
            method=built.method,
        )
        yield state


@pytest.mark.parametrize("stacked", [False, True])
def test_every_layer_keeps_its_own_choice_and_renews_it(stacked):
    lm, config, built = toys.model(), triforce.Config(**TINY), None
    for state in states(lm, stacked, 8):
        row = state.drafter
        before, built = built, np.asarray(row.built)
        if before is not None:
            assert ((built == before) | (built - before >= config.refresh)).all()
        for b in (0, 2):
            for layer in range(2):
                key = np.asarray(state.cache.key[layer])[b]
                for head in range(2):
                    best, _ = chosen_by_hand(key[head], int(built[b]), config)
                    chunks = np.asarray(row.chunks[0][layer])[b, head]
                    assert chunks[: len(best)].tolist() == best
    assert (built[:3] > [45, 1, 27]).all(), "renewed while decoding"


def test_chunks_may_be_longer_than_the_canvas():
    config = triforce.Config(budget=600, chunk=500, recent=1)
    chunks = triforce.choose(jnp.ones((8, 64)), jnp.int32(40), config)
    slots = triforce.slots(chunks, jnp.int32(40), 64, config)
    assert slots.tolist() == list(range(64))


def test_options_are_checked():
    with pytest.raises(InputError, match="budget=35.*40"):
        jd.generate(toys.model(), PROMPTS, method="triforce", budget=35)
    with pytest.raises(InputError, match="chunk=0"):
        jd.generate(toys.model(), PROMPTS, method="triforce", chunk=0)
