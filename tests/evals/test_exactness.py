"""The proofs themselves: they know the right law, and they convict what is wrong."""

import itertools

import numpy as np
import pytest
from scipy import stats

from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError, UnknownNameError
from jaxdecode.evals import enumeration, exactness, exactness_fill, sampled, toys
from jaxdecode.trees import walk
from tests.toys import CORE, FILL

# Lines that promise the tokens of plain decoding are compared with it token by token elsewhere.
LAWS = [name for name in exactness.names("all") if METHODS[name].level != "L0"]


def test_the_law_of_a_markov_chain_is_the_product_of_its_table():
    table = np.random.default_rng(0).dirichlet(np.ones(5), 5)
    law = toys.joint_law(toys.markov(table), (3, 1), 3, temperature=1.0)
    for a, b, c in itertools.product(range(5), repeat=3):
        np.testing.assert_allclose(law[a, b, c], table[1, a] * table[a, b] * table[b, c], rtol=1e-5)


def test_chi_square_agrees_with_scipy():
    rng = np.random.default_rng(1)
    law = rng.dirichlet(np.ones(300))
    for draws in (law, 0.95 * law + 0.05 / 300):
        found = rng.multinomial(100_000, draws)
        expected = law * 100_000
        kept = expected >= sampled.MIN_EXPECTED
        pooled = [np.append(x[kept], x[~kept].sum()) for x in (found, expected)]
        p = stats.chisquare(*pooled).pvalue
        assert sampled.chi_square(found, law) == pytest.approx(p, rel=1e-2, abs=1e-6)


def test_a_token_that_cannot_occur_convicts_at_once():
    law = np.asarray([0.5, 0.5, 0.0])
    assert sampled.chi_square(np.asarray([500, 499, 1]), law) == 0.0
    assert sampled.chi_square(np.asarray([500, 500, 0]), law) > 0.5


def test_the_toy_target_depends_on_all_of_its_past():
    law = exactness.law_of_target()
    assert law.shape == (toys.VOCAB,) * sampled.NUM_NEW and law.sum() == pytest.approx(1.0)
    last = law.sum((0, 1)) / law.sum((0, 1)).sum(-1, keepdims=True)
    by_first = law.sum(1) / law.sum(1).sum(-1, keepdims=True)
    assert np.abs(by_first - last).max() > 0.05, "a chain of order one would hide stale caches"


def test_enumeration_convicts_the_twin_however_drafts_are_drawn():
    twin = walk.make(exactness.broken_rule)
    for drafters in (tried for draws, tried in exactness.DRAWN.items() if draws != "none"):
        for drafter in drafters:
            assert enumeration.variation(twin, drafter, num_cases=7) > 1e-2


@pytest.mark.parametrize("name", ["ar", "prompt_lookup", *(n for n in LAWS if n in CORE)])
def test_a_line_is_proven_and_its_twin_convicted(name):
    proof = exactness.prove(name, 50_000)
    assert proof.passed, proof
    assert proof.twin_variation > 1e-2
    assert proof.twin_p_value is None or proof.twin_p_value < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", exactness.names("all"))
def test_every_line_is_proven_with_a_million_samples(name):
    proof = exactness.prove(name, 1_000_000)
    assert proof.passed and (proof.p_value is None or proof.samples >= 1_000_000), proof


def test_names_of_lines():
    without = set(METHODS) - set(exactness.names("all"))
    unproven = {name for name in FILL if not exactness_fill.provable(name)}
    beside = {name for name, entry in METHODS.items() if entry.continuous}
    assert without == {"specreason", *unproven, *beside} and beside
    with pytest.raises(InputError, match="denoises vectors"):
        exactness.names("neodiff")
    with pytest.raises(InputError, match="a policy over runs"):
        exactness.names("ar,specreason")
    assert exactness.names("ar, prompt_lookup") == ["ar", "prompt_lookup"]
    with pytest.raises(UnknownNameError, match="prompt_lookup"):
        exactness.names("prompt_lokup")
    with pytest.raises(InputError, match="empty"):
        exactness.names(" ,")
