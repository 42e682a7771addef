"""generate_many: any number of prompts, read as they are needed, each result as it is done."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import api, refill
from jaxdecode.core import rows
from jaxdecode.dist import mesh as meshes
from jaxdecode.errors import InputError, UnsupportedError
from tests import toys

ASKED = {"max_new_tokens": 12, "temperature": 1.0, "stop_tokens": [1, 2, 3], "seed": 4}


def prompts(num):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 61, rng.integers(1, 30)).tolist() for _ in range(num)]


def test_what_comes_in_takes_the_place_and_nothing_else():
    old, new = jnp.arange(24).reshape(4, 3, 2), -jnp.arange(1, 13).reshape(2, 3, 2)
    running = {"a": old, "b": old.swapaxes(0, 2), "c": jnp.arange(4)}
    fresh = {"a": new, "b": new.swapaxes(0, 2), "c": -jnp.arange(1, 3)}
    wanted = np.array(old)
    wanted[2] = new[0]
    out = rows.insert(running, fresh, jnp.array([2, 0]), jnp.int32(1))
    np.testing.assert_array_equal(out["a"], wanted)
    np.testing.assert_array_equal(out["b"].swapaxes(0, 2), wanted)
    assert out["c"].tolist() == [0, 1, -1, 3]


@pytest.mark.parametrize("shapes", [((4, 4), (2, 2)), ((3,), (3,)), ((), ())])
def test_arrays_that_rows_share_are_refused(shapes):
    running, fresh = map(jnp.zeros, shapes)
    with pytest.raises(UnsupportedError, match="share an array of shape"):
        rows.insert(running, fresh, jnp.array([0]), jnp.int32(1))


def waiting(lengths, size):
    source = iter([refill.Row(i, np.zeros(n), np.zeros(2)) for i, n in enumerate(lengths)])
    return refill.Ahead(source, size, lambda row: -(-len(row.tokens) // 10) * 10)


def test_rows_of_like_length_go_together_and_the_first_is_among_them():
    ahead = waiting([3, 9, 25, 4, 8, 1, 26], 6)
    assert ahead.choose() == 10
    assert [row.name for row in ahead.take(10, 2)] == [0, 3]
    assert [row.name for row in ahead.take(10, 9)] == [1, 4, 5]
    assert ahead.take(10, 2) == [] and ahead.choose() == 30
    assert [row.name for row in ahead.take(30, 2)] == [2, 6] and ahead.choose() is None


def test_nothing_waits_for_ever():
    ahead, seen = waiting(itertools.chain([25], itertools.repeat(5, 1000)), 4), []
    while (slots := ahead.choose()) is not None and 0 not in seen:
        while new := ahead.take(slots, 2):
            seen += [row.name for row in new]
            ahead.fill()
    assert 0 in seen and len(seen) < 30


def test_no_more_is_read_than_needed():
    num_read = 0

    def endless():
        nonlocal num_read
        for prompt in itertools.cycle(prompts(20)):
            num_read += 1
            yield prompt

    results = jd.generate_many(toys.model(), endless(), batch_size=4, look_ahead=5, **ASKED)
    assert num_read == 0
    assert len(list(itertools.islice(results, 30))) == 30
    assert num_read <= 30 + 4 + 5 + 4


@pytest.mark.parametrize("refilled", [True, False])
def test_samples_and_seeds_are_those_of_generate(refilled):
    lm, given = toys.model(), prompts(9)
    lines = [{"tokens": row, "seed": i} if i % 2 else row for i, row in enumerate(given)]
    seeds = [i if i % 2 else ASKED["seed"] for i in range(9)]
    plain = jd.generate(lm, given, n=3, **ASKED | {"seed": seeds})
    sizes = {"n": 3, "batch_size": 4, "look_ahead": 8, "refilled": refilled}
    found = dict(jd.generate_many(lm, lines, **sizes, **ASKED))
    assert [tokens for i in range(9) for tokens in found[i].tokens] == plain.tokens
    assert len(found[0].stats) == 3 and found[0].stats[2].seconds > 0


def test_a_bad_prompt_is_an_error_or_told():
    lm, told = toys.model(), []
    lines = [[1], {"tokens": [99]}, {"tokens": [1], "seed": "x"}, 7, [2] * 3000, [2]]
    with pytest.raises(InputError, match="prompt token id"):
        list(jd.generate_many(lm, lines, **ASKED))
    found = dict(jd.generate_many(lm, lines, on_error=lambda *what: told.append(what), **ASKED))
    assert sorted(found) == [0, 5] and [i for i, _ in told] == [1, 2, 3, 4]
    parts = ("token id", "seed", "a prompt is a int", "3000 tokens")
    assert all(part in str(error) for part, (_, error) in zip(parts, told, strict=True))


def test_what_cannot_let_rows_in_says_so():
    lm = toys.model()
    shared = {"method": "suffix_decoding", "store": 64, **ASKED}
    with pytest.raises(UnsupportedError, match="share what it learns; ask for fixed.*refilled=F"):
        jd.generate_many(lm, prompts(4), **shared)
    assert len(dict(jd.generate_many(lm, prompts(4), refilled=False, **shared))) == 4
    split = api.from_params(lm.config, lm.params, mesh=meshes.make("data=1,model=1"))
    with pytest.raises(UnsupportedError, match="lies on several devices"):
        jd.generate_many(split, prompts(4), **ASKED)
    with pytest.raises(UnsupportedError, match="runs two models by turns"):
        jd.generate_many(lm, prompts(4), method="specreason", draft=lm)
    for bad in ({"look_ahead": 0}, {"n": 0}, {"batch_size": True}, {"seed": [1, 2]}):
        with pytest.raises(InputError, match=next(iter(bad))):
            jd.generate_many(lm, prompts(4), **ASKED | bad)


def test_an_empty_source_gives_nothing():
    assert list(jd.generate_many(toys.model(), iter([]), **ASKED)) == []
