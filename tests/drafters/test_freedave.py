"""FreeDave: the tokens of one slot per pass, in fewer passes, with every reuse."""

import dataclasses

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.drafters import freedave
from jaxdecode.errors import InputError
from jaxdecode.evals import exactness_fill
from jaxdecode.models import pairs
from jaxdecode.verifiers import nested
from tests import toys

DUAL = {"block_length": 8, "reuse": "dual"}
CASES = [
    ({}, {}, {}),
    ({"shifted": True}, DUAL, {}),
    ({"block": 8, "shifted": True}, {}, {}),
    ({}, DUAL, {"temperature": 0.8, "seed": 5}),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ({}, DUAL, {}),
            ({}, DUAL | {"reuse": "prefix"}, {}),
            ({"shifted": True}, DUAL | {"reuse": "prefix"}, {}),
            ({"block": 8}, {"reuse": "none"}, {}),
            ({}, {"block_length": 8}, {}),
            ({}, {}, {"temperature": 0.8, "seed": 5}),
        ]
    ),
]


def prompts(num, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 60, rng.integers(1, 14)).tolist() for _ in range(num)]


def both(parts, asked, rows, **more):
    """The plain sampler's result, and FreeDave's."""
    lm, asked = toys.denoiser(**parts), {"max_new_tokens": 24} | asked
    plain = jd.generate(lm, rows, method="llada", **asked)
    return plain, jd.generate(lm, rows, method="freedave", **asked, **more)


def check(parts, asked, rows, **more):
    plain, ours = both(parts, asked, rows, **more)
    assert ours.tokens == plain.tokens
    for a, b in zip(ours.logprobs, plain.logprobs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    return [[stats.nfe for stats in out.stats] for out in (plain, ours)]


@pytest.mark.parametrize(("parts", "options", "law"), CASES)
def test_tokens_are_those_of_one_slot_per_pass(parts, options, law):
    plain, ours = check(parts, options | law, prompts(8))
    assert all(a <= b for a, b in zip(ours, plain, strict=True))
    if not law:
        assert sum(ours) < 0.9 * sum(plain)


@pytest.mark.slow
@pytest.mark.parametrize("tries", [(1, 1), (7, 1), (3, 2)])
@pytest.mark.parametrize(("parts", "options", "law"), CASES)
def test_tokens_of_two_hundred_rows(parts, options, law, tries):
    rows, (num_draft, num_choices) = prompts(200, seed=1), tries
    asked = options | law | {"batch_size": 100}
    plain, ours = check(parts, asked, rows, num_draft=num_draft, num_choices=num_choices)
    assert all(a <= b for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize(("parts", "options", "law"), [CASES[1], CASES[3]])
def test_choices_take_steps_in_other_orders(parts, options, law):
    """More texts are tried, so more steps are taken; tokens stay the same."""
    rows = prompts(8, seed=2)
    _, one = check(parts, options | law, rows)
    plain, two = check(parts, options | law, rows, num_choices=2)
    assert all(a <= b for a, b in zip(two, plain, strict=True))
    assert law or sum(two) < sum(one)


@pytest.mark.parametrize("reach", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 4))])
@pytest.mark.parametrize(("parts", "options", "law"), [CASES[1], CASES[3]])
def test_tokens_do_not_depend_on_who_guesses(parts, options, law, reach):
    """Guesses as the last pass left them, or told of each other by more or fewer slots."""
    check(parts, options | law, prompts(8, seed=3), reach=reach, num_choices=2)


def test_pairs_are_asked_for_once_and_only_of_small_vocabularies(monkeypatch):
    times = []
    asked = pairs.asked
    monkeypatch.setattr(pairs, "asked", lambda *a, **k: times.append(k["reach"]) or asked(*a, **k))
    lm = dataclasses.replace(toys.denoiser())  # as loaded: other tests have prepared theirs
    for _ in range(2):
        jd.generate(lm, prompts(2), method="freedave", max_new_tokens=8)
    assert times == [2]
    # Options of its own, so that no bundle of the small vocabulary is reused.
    monkeypatch.setattr(freedave, "MAX_AUTO", lm.config.vocab_size - 1)
    jd.generate(lm, prompts(2), method="freedave", max_new_tokens=8, num_draft=2)
    assert times == [2]
    jd.generate(lm, prompts(2), method="freedave", max_new_tokens=8, num_draft=2, reach=1)
    assert times == [2, 1]


@pytest.mark.parametrize("reach", [-1, 17, "all"])
def test_a_reach_out_of_range_is_refused(reach):
    with pytest.raises(InputError, match=f"reach={reach!r}"):
        freedave.Config(reach=reach)


def test_sets_are_those_that_a_walk_with_choices_passes():
    """Against the walks themselves: each step takes one of the w least ranks that are left."""
    for num_draft, num_choices in [(0, 3), (1, 1), (3, 1), (3, 2), (2, 4)]:
        found = freedave.sets(freedave.Config(num_draft=num_draft, num_choices=num_choices))
        walks: set[frozenset[int]] = {frozenset()}
        passed = set()
        for _ in range(num_draft):
            width = num_draft + num_choices
            lefts = [(walk, sorted(set(range(width)) - walk)[:num_choices]) for walk in walks]
            walks = {walk | {rank} for walk, ranks in lefts for rank in ranks}
            passed |= walks
        assert len(found) == len(passed)
        assert {frozenset(np.flatnonzero(row).tolist()) for row in found} == passed


def test_too_many_texts_are_refused():
    with pytest.raises(InputError, match="num_draft=8 with num_choices=8 tries 12,869 texts"):
        freedave.Config(num_draft=8, num_choices=8)


def test_without_tries_it_is_the_plain_sampler():
    plain, ours = check({}, DUAL, prompts(4), num_draft=0)
    assert plain == ours


def test_tokens_forwarded_are_those_of_all_texts():
    """One text in the first pass; in later ones as many as there may be steps left."""
    lm = toys.denoiser()
    (stats,) = jd.generate(lm, [[5]], method="freedave", max_new_tokens=3, num_draft=1).stats
    # 4 slots; three undecided, then two with one text tried, then perhaps one.
    assert stats.tokens_forwarded == 4 + 8 + 4 * (stats.nfe - 2)


def test_a_walk_that_takes_a_step_too_many_is_found(monkeypatch):
    """The broken twin: every step counts as one to a text that was tried."""
    monkeypatch.setattr(nested, "make", lambda *_: exactness_fill.TRUSTING)
    # Options of its own, so that no bundle with the right walk is reused.
    plain, ours = both({}, {"max_new_tokens": 23}, prompts(4), num_draft=5)
    assert ours.tokens != plain.tokens
