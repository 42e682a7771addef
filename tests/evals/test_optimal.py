"""The optimal acceptance against a linear program over all transport plans."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from jaxdecode.errors import InputError
from jaxdecode.evals.optimal import optimal_acceptance


def transport(target, drafts, probs):
    """Most probability on tokens among the drafts of any coupling of drafts and target."""
    num_rows, size = len(drafts), len(target)
    gain = np.zeros((num_rows, size))
    for row, draft in enumerate(drafts):
        gain[row, list(draft)] = 1
    of_row = np.kron(np.eye(num_rows), np.ones(size))
    of_token = np.kron(np.ones(num_rows), np.eye(size))
    # One constraint follows from the others; with it rounding could make the program infeasible.
    limits = np.concatenate([probs, target])[:-1]
    found = linprog(-gain.ravel(), A_eq=np.concatenate([of_row, of_token])[:-1], b_eq=limits)
    return -found.fun


def _drafts(law, number, draws):
    size = len(law)
    if draws == "with_replacement":
        rows = list(itertools.product(range(size), repeat=number))
        return rows, np.prod(law[np.asarray(rows)], axis=1)
    rows = list(itertools.permutations(range(size), min(number, size)))

    def left(row, place):
        return 1 - law[list(row[:place])].sum()

    probs = [np.prod([law[x] / left(row, i) for i, x in enumerate(row)]) for row in rows]
    return rows, np.asarray(probs)


@pytest.mark.parametrize("draws", ["with_replacement", "without_replacement"])
def test_it_is_what_a_linear_program_finds(draws):
    rng = np.random.default_rng(0)
    for _ in range(100):
        size, number = int(rng.integers(2, 7)), int(rng.integers(1, 4))
        target, draft = rng.dirichlet(np.full(size, 0.6), 2)
        best = transport(target, *_drafts(draft, number, draws))
        found = optimal_acceptance(target, draft, number, draws)
        np.testing.assert_allclose(found, best, atol=1e-6)


def test_the_integral_agrees_with_the_closed_form_of_two_drafts():
    from jaxdecode.evals import optimal

    rng = np.random.default_rng(1)
    for _ in range(20):
        draft = rng.dirichlet(np.full(200, 0.1))
        mass = np.cumsum(draft)
        exact = optimal._all_inside(draft, 2)
        np.testing.assert_allclose(optimal._first_arrivals(draft, mass, 2), exact, atol=1e-8)


def test_more_drafts_are_never_worse_and_without_replacement_is_better():
    rng = np.random.default_rng(2)
    for _ in range(30):
        target, draft = rng.dirichlet(np.full(20, 0.3), 2)
        found = {
            draws: [optimal_acceptance(target, draft, k, draws) for k in range(1, 6)]
            for draws in ("with_replacement", "without_replacement")
        }
        for rates in found.values():
            assert (np.diff(rates) >= -1e-9).all()
        assert (np.subtract(*found.values()) <= 1e-9).all()


def test_edges():
    even = np.full(4, 0.25)
    assert optimal_acceptance(even, even, 1, "with_replacement") == pytest.approx(1)
    one, other = np.array([1.0, 0, 0]), np.array([0, 0.5, 0.5])
    assert optimal_acceptance(one, other, 3, "without_replacement") == 0
    assert optimal_acceptance(even, np.eye(4)[0], 3, "without_replacement") == pytest.approx(0.25)
    assert optimal_acceptance(even, even, 9, "without_replacement") == pytest.approx(1)


@pytest.mark.parametrize(
    ("target", "draft", "draws", "message"),
    [
        ([0.5, 0.6], [0.5, 0.5], "with_replacement", "target is not a law"),
        ([0.5, 0.5], [1.5, -0.5], "with_replacement", "draft is not a law"),
        ([0.5, 0.5], [1.0], "with_replacement", "target has 2 tokens, but draft has 1"),
        ([0.5, 0.5], [0.5, 0.5], "twice", "draws='twice'"),
    ],
)
def test_bad_input_is_named(target, draft, draws, message):
    with pytest.raises(InputError, match=message):
        optimal_acceptance(target, draft, 2, draws)
