"""Warming up: what was promised to be compiled compiles no more."""

import jax
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import warm
from jaxdecode.errors import InputError, UnsupportedError
from tests import toys

# Three sets of programs: a canvas of 128 slots after one chunk or another, and one of 192.
MAX_PROMPT, NEW = 30, 88
# Answers are short: what there is to see is what compiles.
ASKED = {"max_new_tokens": NEW, "temperature": 0.9, "stop_tokens": list(range(12))}


def few_first(first, *others):
    """Parameters of a test: all but the first are slow."""
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


@pytest.fixture(autouse=True)
def nothing_compiled():
    jax.clear_caches()


def prompts(num, longest=MAX_PROMPT):
    rng = np.random.default_rng(0)
    lengths = [longest, *rng.integers(1, longest + 1, num - 1)]
    return [rng.integers(0, 61, length).tolist() for length in lengths]


def given(name):
    lm = toys.filler(name) if name == "fast_dllm" else toys.model()
    return lm, {"method": name, **toys.helpers(name, lm)}


@pytest.mark.parametrize("name", few_first("token_recycling", "ar", "medusa", "fast_dllm"))
def test_data_sets_compile_nothing_after_warm_up(name):
    lm, parts = given(name)
    sizes = {"n": 2, "batch_size": 16}
    jd.warmup_many(lm, max_prompt=MAX_PROMPT, **parts, **sizes, **ASKED)
    with toys.count_compilations() as compiled:
        found = dict(jd.generate_many(lm, prompts(12), **parts, **sizes, **ASKED))
    assert len(found) == 12 and compiled == []
    with toys.count_compilations() as compiled:
        dict(jd.generate_many(lm, prompts(1, 60), **parts, **sizes, **ASKED))
    assert compiled, "the counter must count"


def test_fixed_batches_compile_nothing_after_warm_up():
    lm = toys.model()
    asked = {"method": "suffix_decoding", "store": 64, "n": 2, "batch_size": 3, "refilled": False}
    jd.warmup_many(lm, max_prompt=16, **asked, **ASKED)
    with toys.count_compilations() as compiled:
        found = dict(jd.generate_many(lm, prompts(3, 16), look_ahead=4, **asked, **ASKED))
    assert len(found) == 3 and compiled == []


@pytest.mark.parametrize(
    ("n", "batch_size", "rows"),
    [(1, 1, [1]), (1, 4, [1, 2, 3, 4]), (3, 7, [3, 6]), (5, 2, [1, 2]), (4, 4, [4])],
)
def test_rows_of_fixed_batches(n, batch_size, rows):
    assert warm._fixed_sizes(n, batch_size) == rows


@pytest.mark.parametrize("name", few_first("token_recycling", "aded"))
def test_what_is_remembered_compiles_nothing(name):
    lm, memory, asked = toys.model(), {}, {"method": name, **ASKED}
    jd.warmup(lm, batch_sizes=[2], requests=[(16, NEW)], **asked)
    with toys.count_compilations() as compiled:
        for _ in range(2):
            jd.generate(lm, prompts(2, 16), memory=memory, **asked)
    assert memory and compiled == []


def test_what_cannot_be_warmed_up_says_so():
    lm = toys.model()
    with pytest.raises(InputError, match="max_prompt=0"):
        jd.warmup_many(lm, max_prompt=0)
    with pytest.raises(UnsupportedError, match="share what it learns; ask for fixed.*refilled=F"):
        jd.warmup_many(lm, max_prompt=9, method="suffix_decoding", store=64)
    with pytest.raises(InputError, match="by turns; warm up each"):
        jd.warmup_many(lm, max_prompt=9, method="specreason", draft=lm, refilled=False)
