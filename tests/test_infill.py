"""Templates: what is given stays, what is open is filled, and what cannot be is refused."""

import pytest

import jaxdecode as jd
from jaxdecode import template
from jaxdecode.errors import InputError
from tests import toys

OPEN = None
ROW = [3, OPEN, OPEN, 9, 9, OPEN, 4]


def infill(given, lm=None, **asked):
    return jd.infill(lm or toys.denoiser(), given, **asked)


@pytest.mark.parametrize("asked", [{}, {"method": "fast_dllm", "block_length": 2}])
def test_what_is_given_stays_and_what_is_open_is_filled(asked):
    rows = [ROW, [5, OPEN], [7, 7, 7, OPEN, OPEN, OPEN, OPEN, 7, 1, 2, 3]]
    out = infill([{"tokens": row} for row in rows], **asked)
    for row, tokens, steps, stats in zip(rows, out.tokens, out.steps, out.stats, strict=True):
        assert len(tokens) == len(row)
        for given, token, step in zip(row, tokens, steps, strict=True):
            assert (step >= 0) == (given is OPEN)
            assert token == given or (given is OPEN and 0 <= token < 60)
        assert stats.num_tokens == row.count(OPEN)
    alone = infill({"tokens": ROW}, **asked)
    assert alone.tokens[0] == out.tokens[0]


def test_what_comes_after_is_seen():
    first, second = (infill({"tokens": [3, OPEN, OPEN, last]}).tokens[0] for last in (4, 5))
    assert first[:3] != second[:3]


def test_several_samples_differ():
    out = infill({"tokens": ROW}, n=3, temperature=1.0)
    assert len(set(map(tuple, out.tokens))) == 3


def test_text_is_filled(tmp_path):
    words = toys.spelling(tmp_path).tokenizer
    row = template.read("abc[[MASK:3]]de", words, toys.config())
    assert row.count(-1) == 3 and row.start == len(words.encode("abc"))
    assert list(row[row.start + 3 :]) == words.encode("de")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": [1, 2]}, "nothing to fill in"),
        ({"tokens": [OPEN, 2]}, "begins with an open slot"),
        ({"tokens": [1, OPEN, 999]}, "999"),
        ("a [[MASK:2]]", "no tokenizer"),
        (7, "a template is a int"),
        ({"tokens": [1] + [OPEN] * 3000}, "context is 2048"),
    ],
)
def test_templates_that_cannot_be_filled_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        infill([given])


def test_options_that_a_template_leaves_no_room_for_are_refused():
    with pytest.raises(InputError, match="max_new_tokens is not for templates"):
        infill({"tokens": ROW}, max_new_tokens=3)
    with pytest.raises(InputError, match="method 'ar' writes one token after the other"):
        infill({"tokens": ROW}, method="ar")
    with pytest.raises(InputError, match="method 'llada' cannot run this model"):
        infill({"tokens": ROW}, lm=toys.model())
