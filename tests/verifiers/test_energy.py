"""Texts weighed by a left-to-right model: known by hand and by enumeration, and twins convicted."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import resolve
from jaxdecode.errors import InputError
from jaxdecode.evals import oracles, sampled
from jaxdecode.evals import toys as smallest
from jaxdecode.verifiers import energy
from tests import toys
from tests.commits import blocks

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
ROWS = 4096
# Two tokens and the mask token, which is also the prompt. The target thinks the slots independent;
# the other model knows that they are equal.
INDEPENDENT = ((0.25, 0.25), (0.25, 0.25))
EQUAL = np.array([[1.0, 1e-12, 1e-12], [1e-12, 1.0, 1e-12], [0.5, 0.5, 1e-12]])
# Nothing is equal to anything here.
SKEW = ((0.30, 0.05), (0.25, 0.40))
CHAIN = np.array([[0.7, 0.29, 0.01], [0.15, 0.8, 0.05], [0.35, 0.6, 0.05]])


@pytest.fixture
def two(monkeypatch):
    """Texts of two tokens at temperature 1, counted by `sampled`."""
    monkeypatch.setattr(sampled, "PROMPT", (2,))
    monkeypatch.setattr(sampled, "NUM_NEW", 2)
    monkeypatch.setattr(sampled, "TEMPERATURE", 1.0)


def counts(table, chain, *, weigh=energy.log_weights, rows=ROWS, **asked):
    """How often the real loop writes each text of two tokens, `[3, 3]`."""
    _, choice = resolve.split("edlm", asked)
    ready = sampled.setup(choice, oracles.table_model(table), smallest.markov(chain))
    made = ready.method.verifier.verify
    assert made.args[2] is energy.log_weights
    verify = functools.partial(made.func, *made.args[:2], weigh)
    verifier = ready.method.verifier._replace(verify=verify)
    ready = ready._replace(method=ready.method._replace(verifier=verifier))
    return sampled.counts(ready, rows).cells


def equal_share(**asked):
    cells = counts(INDEPENDENT, EQUAL, **asked)
    return float(np.trace(cells) / cells.sum())


def near(share, goal):
    """Within four standard errors."""
    return abs(share - goal) <= 4 * math.sqrt(goal * (1 - goal) / ROWS)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_texts_are_right_as_often_as_one_of_k_is(two, k):
    """A draw is right half of the time; one that is right is picked if there is one."""
    share = equal_share(num_candidates=k, steps=1)
    assert near(share, 1 - 2**-k) and not near(share, 1 - 2 ** -(k / 2))


def test_it_takes_as_much_where_slots_are_filled_one_by_one(two):
    assert near(equal_share(num_candidates=4, steps=0), 1 - 2**-4)


@pytest.mark.parametrize("k", [2, 4])
def test_the_wrong_sign_is_convicted(two, k):
    """Right only where all are."""
    share = equal_share(num_candidates=k, steps=1, weigh=lambda energies, T: energies / T)
    assert near(share, 2**-k) and not near(share, 1 - 2**-k)


def law_by_enumeration(k, temperature, sign=-1):
    """Law of the picked text over all k-tuples of draws; `[3, 3]`."""
    table = np.asarray(SKEW)
    q = np.outer(table.sum(1), table.sum(0)).ravel()
    energies = np.log(q) - np.log(law_of_chain()[:2, :2].ravel())
    law = np.zeros(4)
    for drawn in itertools.product(range(4), repeat=k):
        weights = np.exp(sign * energies[list(drawn)] / temperature)
        np.add.at(law, list(drawn), q[list(drawn)].prod() * weights / weights.sum())
    return np.pad(law.reshape(2, 2), (0, 1))


def law_of_chain():
    return CHAIN[2][:, None] * CHAIN


@pytest.mark.parametrize(("k", "temperature"), [(2, 1.0), (3, 0.5)])
def test_the_loop_has_the_law_of_all_tuples_of_draws(two, k, temperature):
    asked = {"num_candidates": k, "energy_temperature": temperature, "steps": 1}
    found = counts(SKEW, CHAIN, rows=2 * ROWS, **asked)
    assert sampled.chi_square(found, law_by_enumeration(k, temperature)) > 1e-3
    for wrong in [(k, temperature, 1), (k, 3 * temperature), (k - 1, temperature)]:
        assert sampled.chi_square(found, law_by_enumeration(*wrong)) < 1e-6, wrong


def test_many_candidates_have_the_law_of_the_other_model(two):
    """As far as the target goes, which never writes the third token."""
    found = counts(SKEW, CHAIN, num_candidates=64, steps=1)
    wanted = np.pad(law_of_chain()[:2, :2], (0, 1))
    assert sampled.total_variation(found, wanted) < 0.03
    few = counts(SKEW, CHAIN, num_candidates=2, steps=1)
    assert sampled.total_variation(few, wanted) > 0.1


def test_a_token_that_the_other_model_does_not_have_is_picked_where_all_texts_have_one(two):
    """Of nine equally likely texts four are without the third token; nothing is NaN."""
    found = counts(((1 / 9,) * 3,) * 3, np.full((2, 2), 0.5), num_candidates=4, steps=1)
    assert found[:3, :3].sum() == found.sum() == ROWS
    assert near(found[:2, :2].sum() / ROWS, 1 - (5 / 9) ** 4)


@pytest.mark.parametrize("law", [{}, {"temperature": 0.9, "seed": 4, "top_k": 20}])
def test_one_candidate_is_mdlm_and_so_is_a_greedy_row(law):
    asked = {"max_new_tokens": 17, "steps": 6} | law
    plain = jd.generate(toys.denoiser(), PROMPTS, method="mdlm", **asked)
    draft = toys.helpers("edlm")
    for more in [{"num_candidates": 1}, {"energy_start": 0.0}] + ([] if law else [{}]):
        ours = jd.generate(toys.denoiser(), PROMPTS, method="edlm", **draft, **asked, **more)
        assert (ours.tokens, ours.steps) == (plain.tokens, plain.steps)
        for found, wanted in zip(ours.logprobs, plain.logprobs, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)
    if law:
        other = jd.generate(toys.denoiser(), PROMPTS, method="edlm", **draft, **asked)
        assert other.tokens != plain.tokens, "nothing else would be compared"


def test_it_acts_in_its_part_of_the_clock_only():
    """Six slots in six passes: the first three are those of mdlm, later ones are weighed."""
    asked = {"max_new_tokens": 6, "steps": 0, "temperature": 0.9, "n": 8}
    plain = jd.generate(toys.denoiser(), PROMPTS, method="mdlm", **asked)
    draft = toys.helpers("edlm") | {"num_candidates": 8}
    late = jd.generate(toys.denoiser(), PROMPTS, method="edlm", energy_start=0.5, **draft, **asked)
    early = jd.generate(toys.denoiser(), PROMPTS, method="edlm", energy_end=0.9, **draft, **asked)

    def differ(out, step):
        pairs = zip(out.tokens, plain.tokens, plain.steps, strict=True)
        return sum(a[s.index(step)] != b[s.index(step)] for a, b, s in pairs)

    assert [differ(late, step) for step in range(3)] == [0, 0, 0] and differ(late, 3) > 0
    assert differ(early, 0) > 0


def test_energies_are_those_of_two_plain_models():
    """The whole text of rows with given, open and unreachable slots, against a plain pass."""
    lm, other = toys.denoiser(), toys.model(seed=5)
    engine = toys.built(lm, "edlm", num_candidates=3)
    row = [*PROMPTS[2], 60, 60, 60, 4, 60, 7]
    open = np.zeros(16, bool)
    open[[9, 10, 11, 13, 15]] = True
    canvas, window = shown(row + [0], open, start=9, width=4)
    rng = np.random.default_rng(0)
    drawn = jnp.asarray(rng.integers(0, 60, (1, 3, 4)), jnp.int32)
    law = jnp.asarray(rng.normal(size=(1, 3, 4)), jnp.float32)
    texts = energy.Texts(drawn, law, law, jnp.zeros((1, 4, 61)))
    bound = energy.draft_lm.bind(energy.Models(lm.bound, other.bound))
    found = energy._energy(bound, engine.weights, canvas, window, texts, None)[0]
    # Slot 13 is past the window, so that text ends with the given slot 12.
    for ours, tokens, q in zip(found, drawn[0], law[0], strict=True):
        whole = row[:9] + tokens[:3].tolist() + [4]
        logits, _ = toys.full_logits(other, whole)
        logp = np.asarray(jax.nn.log_softmax(logits))[np.arange(8, 12), whole[9:]].sum()
        assert float(ours) == pytest.approx(float(q[:3].sum() - logp), abs=1e-4)


def shown(row, open, *, start, width):
    """One row's canvas and its window over slots `start` on."""
    canvas = blocks.canvas(1, len(row) - 4)
    canvas = dataclasses.replace(
        canvas, tokens=jnp.asarray([row], jnp.int32), open=jnp.asarray([open])
    )
    return canvas, blocks.window(canvas, 0, given=start, width=width)


def test_templates_are_filled_and_what_is_given_stays():
    template = {"tokens": [3, 1, None, None, 4, None, 9]}
    asked = {"draft": toys.model(seed=5), "temperature": 0.9, "steps": 2, "n": 8}
    out = jd.infill(toys.denoiser(), template, method="edlm", **asked)
    kept = [(t[0], t[1], t[4], t[6]) for t in out.tokens]
    assert kept == [(3, 1, 4, 9)] * 8 and len({tuple(t) for t in out.tokens}) > 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_candidates": 0}, "num_candidates"),
        ({"energy_temperature": 0.0}, "energy_temperature=0.0 .* a number > 0"),
        ({"energy_start": 1.5}, "energy_start"),
        ({"energy_start": 0.2, "energy_end": 0.5}, "energy_end=0.5 is above energy_start=0.2"),
        ({"draft": None}, "needs a draft model"),
    ],
)
def test_what_cannot_be_done_is_refused(asked, message):
    given = toys.helpers("edlm") | asked
    with pytest.raises(InputError, match=message):
        jd.generate(toys.denoiser(), PROMPTS, method="edlm", max_new_tokens=4, **given)


def test_a_draft_model_that_fills_slots_is_refused():
    with pytest.raises(InputError, match="no law of a whole text"):
        jd.generate(toys.denoiser(), PROMPTS, method="edlm", draft=toys.denoiser())


def test_a_draft_model_of_other_tokens_is_refused():
    lm, other = toys.denoiser(), toys.model(seed=5)
    maps = (np.arange(61), np.arange(61))
    with pytest.raises(InputError, match="splits text into other tokens"):
        made = toys.drafted(lm, "edlm", other, maps)
        jax.eval_shape(functools.partial(verified, made, lm), made.weights)


def verified(made, lm, weights):
    canvas, window = shown([1, 2, 3, 60, 60, 60, 60, 0, 0, 0], np.arange(10) > 2, start=3, width=4)
    output = energy.TargetOutput(
        hidden=jnp.zeros((1, 1, 1)), rows=((), ()), taps={}, logits=jnp.zeros((1, 4, 61))
    )
    asked = toys.request(lm, toys.options.Options(max_new_tokens=4), [[1, 2, 3]], batch=1)
    return made.method.verifier.verify(weights, asked, canvas, window, output)
