"""Several samples per prompt: n texts of each, in order, the first of them as if it were alone."""

import pytest

import jaxdecode as jd
from jaxdecode.errors import InputError
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [9]]
LAW = dict(temperature=1.0, seed=[4, 5], max_new_tokens=8)


def sample(prompts=PROMPTS, **asked):
    return jd.generate(toys.model(), prompts, **LAW | asked).tokens


# One method that drafts nothing and one that copies; both are L0, so their samples are the same.
@pytest.mark.parametrize("method", ["ar", "prompt_lookup"])
def test_samples_differ_and_the_first_is_what_one_sample_is(method):
    alone, rows = sample(), sample(method=method, n=2)
    assert len(rows) == 4 and rows[::2] == alone, "results are listed prompt by prompt"
    assert rows[0] != rows[1] and rows[2] != rows[3]


def test_samples_do_not_depend_on_what_runs_beside_them():
    rows = sample(n=4)
    assert [sample(n=4, batch_size=size) for size in (1, 3)] == [rows, rows]
    assert sample(n=2) == [*rows[0:2], *rows[4:6]]
    assert sample(PROMPTS[1:], seed=5, n=4) == rows[4:]


def test_greedy_samples_are_equal():
    rows = sample(temperature=0.0, n=2)
    assert rows[::2] == rows[1::2] == sample(temperature=0.0)


@pytest.mark.parametrize("n", [0, -1, True, 1.0, "2", None])
def test_what_is_no_number_of_samples_is_refused(n):
    with pytest.raises(InputError, match=r"n=.* must be an integer >= 1"):
        sample(n=n)
