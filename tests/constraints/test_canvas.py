"""Regular expressions over a canvas that is filled in any order: no text ever leaves them."""

import itertools
import random
import re

import jax
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.constraints import canvas as canvases
from jaxdecode.constraints import matcher as matchers
from jaxdecode.constraints.rules import Rule
from jaxdecode.core import grammar
from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError, UnsupportedError
from tests import toys

FITTING = [name for name in toys.FILL if "regex" not in METHODS[name].refuses]
CORE = ["llada", "fast_dllm"]
MANY = [0, *(pytest.param(first, marks=pytest.mark.slow) for first in (50, 100, 150))]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return toys.filling(tmp_path_factory.mktemp("tokenizer"))


def expression(seed):
    """A random expression whose texts have at most 20 characters, which may be one token each."""
    rng = random.Random(seed)
    parts = [
        "[a-f]",
        "[0-9]{1,3}",
        "(true|name|n)",
        "-?",
        '"?',
        "[a-z ]{0,3}",
        "(\u00e9|e)",
        "x{2}",
    ]
    return "".join(rng.choice(parts) for _ in range(rng.randint(2, 5)))


def write(lm, name, prompts=("a", "name", "x 1"), **asked):
    more = {"max_new_tokens": 20, "temperature": 1.0, "seed": 3} | asked
    if name in ("fast_dllm", "adablock"):
        more |= {"block_length": 10, "threshold": 0.2}
    if METHODS[name].heads:
        more |= toys.helpers(name, lm) | toys.SIZES.get(name, {})
    return jd.generate(lm, list(prompts), method=name, **more)


def text_of(lm, tokens):
    """What was written before the end."""
    cut = [token for token in tokens if token not in lm.end_tokens]
    return lm.tokenizer.decode(cut)


@pytest.mark.parametrize(
    "name", [n if n in CORE else pytest.param(n, marks=pytest.mark.slow) for n in FITTING]
)
def test_every_method_stays_in_the_language(lm, name):
    check(lm, name, range(3))


@pytest.mark.parametrize("name", CORE)
@pytest.mark.parametrize("first", MANY)
def test_random_expressions(lm, name, first):
    check(lm, name, range(first, first + 50))


def check(lm, name, seeds):
    forms = [expression(seed) for seed in seeds]
    out = write(lm, name, prompts=["a"] * len(forms), regex=forms, batch_size=25)
    for form, tokens in zip(forms, out.tokens, strict=True):
        assert re.fullmatch(form, text_of(lm, tokens)), (form, text_of(lm, tokens))
    assert len(set(map(tuple, out.tokens))) > len(forms) // 2


def test_several_slots_per_pass_stay_in_the_language(lm):
    form = "(ab){2,5}|(cd){3,8}|x[0-9]{4}y"
    out = write(lm, "llada", steps=4, regex=form, n=8)
    assert all(re.fullmatch(form, text_of(lm, tokens)) for tokens in out.tokens)
    assert max(stats.nfe for stats in out.stats) < 20


def test_without_the_joint_choice_texts_leave_the_language(lm, monkeypatch):
    def all_at_once(request, canvas, window, candidates, chosen):
        return chosen

    jax.clear_caches()
    monkeypatch.setattr(grammar, "together", all_at_once)
    with pytest.raises((AssertionError, InputError)):
        test_several_slots_per_pass_stay_in_the_language(lm)
    jax.clear_caches()


def test_a_row_is_itself(lm):
    forms = ["[a-f]{3}", None, "(true|name)x?"]
    together = write(lm, "llada", regex=forms)
    for i, prompt in enumerate(("a", "name", "x 1")):
        assert together.tokens[i] == write(lm, "llada", [prompt], regex=forms[i]).tokens[0]


def test_what_fits_is_what_some_accepted_text_has(lm):
    """Against all fillings, written out."""
    size, ends = lm.config.vocab_size, tuple(lm.end_tokens)
    rule = Rule("regex", "a(b|cd)?|dcd|b{3}")
    net = canvases.automaton(rule, lm.tokenizer, size, ends)
    found = canvases.CanvasMatcher(net, rule)
    letters = [lm.tokenizer.encode(letter)[0] for letter in "abcd"]
    texts = [
        slots
        for slots in itertools.product([*letters, ends[0]], repeat=4)
        if _whole(lm, slots, rule.text, ends[0])
    ]
    for given in ([], [(0, letters[0])], [(2, letters[3])], [(1, letters[1]), (3, ends[0])]):
        slots = [dict(given).get(i, -1) for i in range(4)]
        out = np.full((4, grammar.num_words(size)), 0xFFFFFFFF, np.uint32)
        undecided = [i for i in range(4) if slots[i] < 0]
        found.fits(slots, [i if slots[i] < 0 else -1 for i in range(4)], out)
        bits = np.unpackbits(out.view(np.uint8), axis=1, bitorder="little")
        fitting = [t for t in texts if all(t[i] == token for i, token in given)]
        for i in undecided:
            assert set(np.flatnonzero(bits[i])) == {t[i] for t in fitting}


def _whole(lm, slots, form, end):
    length = slots.index(end) if end in slots else len(slots)
    is_padded = all(token == end for token in slots[length:])
    return is_padded and re.fullmatch(form, lm.tokenizer.decode(slots[:length]))


def test_room_that_is_too_small_is_refused(lm):
    with pytest.raises(InputError, match="no text of at most 4 tokens matches"):
        write(lm, "llada", regex="[xyz]{9}", max_new_tokens=4)


def test_warmup_knows_no_expression(lm):
    """Shapes are compiled for fewer tokens than the expression needs as well."""
    asked = dict(method="llada", regex="[ab]{6}")
    jd.warmup(lm, batch_sizes=(1,), requests=[(1, 2), (1, 20)], **asked)
    with toys.count_compilations() as compiled:
        out = jd.generate(lm, "a", max_new_tokens=20, **asked)
    assert not compiled and re.fullmatch("[ab]{6}", text_of(lm, out.tokens[0]))


@pytest.mark.parametrize("asked", [{"json_schema": {}}, {"grammar": 'start: "a"'}])
def test_other_constraints_are_refused(lm, asked):
    with pytest.raises(InputError, match="cannot honour"):
        write(lm, "llada", **asked)


@pytest.mark.parametrize("name", [n for n in toys.FILL if n not in FITTING])
def test_methods_that_judge_otherwise_refuse_it(name):
    with pytest.raises(InputError, match="cannot honour regex"):
        jd.generate(toys.filler(name), [[1]], method=name, regex="a")


def test_templates_refuse_it(lm):
    with pytest.raises(InputError, match="regex is not for templates"):
        jd.infill(lm, "a[[MASK:2]]b", regex="a")


def test_a_missing_library_names_its_extra(lm, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(matchers.importlib, "import_module", missing)
    with pytest.raises(UnsupportedError, match=r"jaxdecode\[constrained\]"):
        canvases.automaton(Rule("regex", "unseen"), lm.tokenizer, lm.config.vocab_size, (268,))
