"""Rows that come into a running batch, under every method: each is the row alone."""

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.registry import METHODS
from tests import toys

NEW, BATCH = 14, 4
QUICK = ("llada", "fast_dllm", "any_subset", "ilm")


def rows(num, long):
    """Prompts with a seed each; `long` is the share of those that need another canvas."""
    rng = np.random.default_rng(0)
    short, others = rng.integers(1, 40, num), rng.integers(110, 140, num)
    lengths = np.where(rng.random(num) < long, others, short)
    # Few different tokens, so that drafters which copy have something to copy.
    return [
        {"tokens": rng.integers(0, 6, n).tolist(), "seed": int(rng.integers(100))} for n in lengths
    ]


def options(name):
    """Tokens that end a text are drawn often, so that rows end at different times."""
    entry = METHODS[name]
    ends = {} if {"stop_tokens", "ignore_eos"} & set(entry.refuses) else {"stop_tokens": [7, 8, 9]}
    own = {"delimiters": (5,)} if name == "adablock" else {}
    return {"max_new_tokens": NEW, **ends, **own, **toys.SIZES.get(name, {}), **toys.drawn(name)}


def check(name, num_rows, long=0.0):
    lm = toys.filler(name) if METHODS[name].fills else toys.model()
    # What was learned from other rows may change the calls, but never a token.
    learns = toys.built(lm, name, **options(name)).method.drafter.remember is not None
    asked = {"method": name, **options(name), **toys.helpers(name)}
    lines = rows(num_rows, long)
    seeds, prompts = ([line[part] for line in lines] for part in ("seed", "tokens"))
    alone = jd.generate(lm, prompts, seed=seeds, batch_size=1, **asked)
    sizes = {"batch_size": BATCH, "look_ahead": 6}
    found = dict(jd.generate_many(lm, iter(lines), **sizes, **asked))
    assert sorted(found) == list(range(num_rows))
    for i, one in found.items():
        assert one.tokens[0] == alone.tokens[i], i
        assert one.finish_reasons[0] == alone.finish_reasons[i]
        texts = [[text.tokens for text in row] for row in alone.alternatives[i : i + 1]]
        assert [[text.tokens for text in row] for row in one.alternatives] == texts
        np.testing.assert_allclose(one.logprobs[0], alone.logprobs[i], atol=1e-4)
        if not learns:
            assert one.steps[0] == alone.steps[i]
            assert one.stats[0].nfe == alone.stats[i].nfe
    with toys.count_compilations() as compiled:
        again = dict(jd.generate_many(lm, iter(lines), **sizes, **asked))
    assert compiled == [], "shapes that were seen before must not compile again"
    assert {i: one.tokens for i, one in again.items()} == {
        i: one.tokens for i, one in found.items()
    }


@pytest.mark.parametrize("name", toys.core_first(toys.LOOP))
def test_a_row_that_comes_in_is_the_row_alone(name):
    check(name, 14, 0.2 if name == "ar" else 0.0)


@pytest.mark.parametrize(
    "name", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in toys.FILL]
)
def test_a_row_that_comes_in_and_is_filled_is_the_row_alone(name):
    check(name, 14)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*toys.LOOP, *toys.FILL])
def test_many_rows(name):
    check(name, 120, 0.2)
