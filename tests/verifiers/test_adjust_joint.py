"""Slots filled one after the other within a pass: by a layer that knows all, or nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import api, resolve
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import Heads
from jaxdecode.core import masks
from jaxdecode.errors import InputError
from jaxdecode.evals import oracles
from jaxdecode.heads import adjust_joint as heads
from jaxdecode.models import extra
from jaxdecode.verifiers import adjust_joint
from tests import toys
from tests.training import gate

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
NEW, BLOCK = 16, 8
LAW = {"temperature": 0.9, "repetition_penalty": 1.3}


@functools.cache
def untrained(lm):
    spec = head_files.HeadSpec("adjust_joint", heads.Shape())
    params = head_files.initial(spec, lm.config, jax.random.key(0), lm.params)
    return Heads(spec=spec, params=params, target=head_files.target_of(lm.config, lm.name))


def generate(lm=None, given=None, **asked):
    lm = lm or toys.denoiser()
    usual = {"method": "adjust_joint", "max_new_tokens": NEW, "block_length": BLOCK}
    return jd.generate(lm, PROMPTS, heads=given or untrained(lm), **(usual | asked))


@functools.cache
def plain():
    """What the sampler of one slot per step says."""
    asked = {"max_new_tokens": NEW, "block_length": BLOCK, "seed": 7} | LAW
    return jd.generate(toys.denoiser(), PROMPTS, method="llada", **asked)


@pytest.mark.slow
def test_one_slot_per_pass_is_the_plain_sampler_whatever_the_layer():
    given = gate.random_heads("adjust_joint", {}, toys.denoiser())
    ours, theirs = generate(given=given, num_joint=1, seed=7, **LAW), plain()
    assert (ours.tokens, ours.steps) == (theirs.tokens, theirs.steps)
    for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def asks_again(model, weights, hidden, window, canvas):
    """What the layer is to learn: the target's own states of the text by now."""
    del hidden
    held = jnp.where(canvas.open, window.mask_token, canvas.tokens)
    output = model.target.forward(weights.target, held, masks.window_program(window), None)
    return jnp.take_along_axis(output.hidden, window.scored[:, :, None], axis=1)


def run_with(tell, lm, prompts, given=None, **asked):
    """Tokens of the real loop, with another source of states."""
    options = {"max_new_tokens": NEW, "block_length": BLOCK} | asked
    given = given or untrained(lm)
    sampling, choice = resolve.split("adjust_joint", options)
    made = api._engine(lm, choice, None, given)
    verify = made.method.verifier.verify
    assert verify.args[2] is adjust_joint.states
    verify = functools.partial(verify.func, *verify.args[:2], tell)
    verifier = made.method.verifier._replace(verify=verify)
    made = toys.engines.Engine(
        model=made.model, method=made.method._replace(verifier=verifier), weights=made.weights
    )
    asked = toys.request(lm, sampling, prompts)
    state = toys.engines.prefilled(made, asked, prompts, sampling.max_new_tokens)
    run = functools.partial(toys.loop.run, target=made.model.target, method=made.method)
    state = run(made.weights, asked, state, jnp.int32(1000))
    rows = zip(np.asarray(state.canvas.tokens), prompts, strict=False)
    texts = [row[len(p) : len(p) + sampling.max_new_tokens].tolist() for row, p in rows]
    return texts, np.asarray(state.stats.nfe)[: len(prompts)].tolist()


def test_a_layer_that_knows_all_is_the_sampler_of_one_slot_token_for_token():
    ours, passes = run_with(asks_again, toys.denoiser(), PROMPTS, num_joint=4, **LAW)
    assert ours == plain().tokens and passes == [4] * 3


def test_the_layer_reads_what_was_filled_and_only_slots_that_there_are():
    lm = toys.denoiser()
    params = gate.random_heads("adjust_joint", {}, lm).params
    rng = np.random.default_rng(0)
    hidden, embedded, other = (jnp.asarray(rng.normal(size=(1, 6, 32)), jnp.float32) for _ in "abc")
    place, group = jnp.arange(6)[None], jnp.asarray([[1, 1, 1, 1, 0, 0]])

    @jax.jit
    def rows(params, embedded):
        seen = extra.windows(place, group)
        return heads.adjusted(lm.bound, params, hidden, embedded, seen)

    found = rows(params, embedded)
    past = jnp.where(group[..., None] == 0, other, embedded)
    np.testing.assert_allclose(rows(params, past)[:, :4], found[:, :4], atol=1e-5)
    one = embedded.at[:, 2].set(other[:, 2])
    assert (np.abs(np.asarray(rows(params, one) - found))[0, :4].max(-1) > 1e-3).all()
    np.testing.assert_allclose(rows(params, 7 * embedded), found, atol=1e-3)
    np.testing.assert_array_equal(rows(untrained(lm).params, embedded), hidden)


@pytest.mark.slow
def test_an_untrained_layer_fills_by_the_laws_of_the_passs_beginning():
    """Greedy; with shifted scores and blocks of the model's own. Prompts are whole blocks."""
    lm, prompts = toys.denoiser(block=BLOCK, shifted=True), [list(range(8)), list(range(7, 23))]
    usual = {"max_new_tokens": NEW}
    theirs = jd.generate(lm, prompts, method="llada", steps=2, **usual)
    ours = jd.generate(
        lm, prompts, method="adjust_joint", block_length=BLOCK, heads=untrained(lm), **usual
    )
    assert (ours.tokens, ours.steps) == (theirs.tokens, theirs.steps)
    assert [stats.nfe for stats in ours.stats] == [NEW // 4] * 2


def test_what_cannot_be_done_is_refused():
    for wrong in ({"num_joint": 0}, {"num_joint": 65}, {"order": "size"}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
            adjust_joint.Config(**wrong)
    with pytest.raises(InputError, match="reads embeddings, and this model has none"):
        adjust_joint.make(adjust_joint.Config(), toys.Models(oracles.lists_model(4).bound))
    with pytest.raises(InputError, match="needs trained heads of kind 'adjust_joint'"):
        jd.generate(toys.denoiser(), PROMPTS, method="adjust_joint")
