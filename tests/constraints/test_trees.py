"""Constrained texts under trees: valid always, the tokens of constrained `ar` under L0."""

import json
import re

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.constraints import matcher as matchers
from jaxdecode.constraints.rules import Rule
from jaxdecode.convert import download, pipeline
from jaxdecode.convert.open import open_source
from jaxdecode.core import grammar
from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError, UnsupportedError
from tests import toys
from tests.constraints import schemas

PROMPTS = ['{"name": "name", "age": 12}', "x", "name 12"]
LARK = 'start: "sum " sum\nsum: NUMBER | sum "+" NUMBER\nNUMBER: /[0-9]{1,2}/'
# Fewer nodes than by default: scores over a whole vocabulary cost most of these tests.
SMALL = {"token_recycling": {"tree": "recycling_8"}}
CORE = ["forced", "token_recycling", "draft_model"]
CONSTRAINED = [n for n in toys.LOOP if "regex" not in METHODS[n].refuses]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return toys.writing(tmp_path_factory.mktemp("tokenizer"))


def drafting(name, lm):
    """A draft model that reads the same vocabulary, where the line takes one."""
    return {"draft": toys.twin(lm)} if "draft" in METHODS[name].needs else toys.helpers(name, lm)


def write(lm, name, prompts=PROMPTS, **asked):
    more = {"max_new_tokens": 48, "temperature": 1.0, "seed": 5} | drafting(name, lm) | asked
    return jd.generate(lm, prompts, method=name, **more)


def check_json(lm, out, forms):
    """Whole texts are what their schemas accept, and cut ones the beginning of such texts."""
    for text, tokens, reason, form in zip(
        out.texts, out.tokens, out.finish_reasons, forms, strict=True
    ):
        if reason == "stop":
            jsonschema.validate(json.loads(text), form)
            continue
        assert reason == "length"
        rule = Rule("json_schema", json.dumps(form))
        (fresh,) = matchers.matchers([rule], lm.tokenizer, lm.config.vocab_size, lm.end_tokens)
        assert fresh._go_to(tokens)


@pytest.mark.parametrize("name", toys.core_first(CONSTRAINED))
def test_every_method_stays_in_the_language(lm, name):
    forms = [schemas.schema(seed) for seed in (3, 4, 5)]
    ours = write(lm, name, json_schema=forms, **({} if _warm(name) else {"temperature": 0.0}))
    check_json(lm, ours, forms)
    if METHODS[name].level == "L0":
        plain = write(lm, "ar", json_schema=forms)
        assert ours.tokens == plain.tokens and ours.finish_reasons == plain.finish_reasons
        for found, wanted in zip(ours.logprobs, plain.logprobs, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-4)


def _warm(name):
    return "temperature" not in METHODS[name].refuses


@pytest.mark.parametrize("name", ["speculative_sampling", "block_verification"])
def test_greedy_l1_is_greedy_ar(lm, name):
    asked = dict(json_schema=schemas.schema(9), temperature=0.0)
    assert write(lm, name, **asked).tokens == write(lm, "ar", **asked).tokens


@pytest.mark.parametrize("name", ["ar", *CORE, "speculative_sampling"])
def test_random_schemas(lm, name):
    check_many(lm, name, range(100, 136), size=12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ar", "forced", "token_recycling", "speculative_sampling"])
def test_two_thousand_schemas_over_a_real_vocabulary(name):
    source = open_source(download.resolve("smollm2-135m"))
    tokenizer = pipeline.read_tokenizer(source)
    lm = toys.reading(tokenizer)
    check_many(lm, name, range(2000), size=16)


def check_many(lm, name, seeds, size):
    finished = 0
    for first in range(0, len(seeds), size):
        forms = [schemas.schema(seed) for seed in seeds[first : first + size]]
        prompts = [PROMPTS[seed % 3] for seed in range(len(forms))]
        asked = dict(json_schema=forms, prompts=prompts, batch_size=size)
        out = write(lm, name, **asked, **SMALL.get(name, {}))
        check_json(lm, out, forms)
        finished += out.finish_reasons.count("stop")
        if METHODS[name].level == "L0" and name != "ar":
            assert out.tokens == write(lm, "ar", **asked).tokens
    assert finished > 0.6 * len(seeds)


@pytest.mark.parametrize("name", ["ar", "forced"])
def test_expressions_and_grammars(lm, name):
    number = "-?[1-9][0-9]{0,3}"
    for text in write(lm, name, regex=number).texts:
        assert re.fullmatch(number, text)
    for text in write(lm, name, grammar=LARK, temperature=0.7, max_new_tokens=200).texts:
        assert re.fullmatch(r"sum \d{1,2}(\+\d{1,2})*", text)


def test_a_row_is_itself(lm):
    forms = [{"type": "boolean"}, None, schemas.schema(3)]
    together = write(lm, "forced", json_schema=forms)
    for i, form in enumerate(forms):
        alone = write(lm, "forced", PROMPTS[i], json_schema=form)
        assert together.tokens[i] == alone.tokens[0]
    assert together.tokens[1] == write(lm, "ar", PROMPTS[1]).tokens[0], "it has no constraint"


def test_an_end_is_allowed_where_the_grammar_accepts_only(lm):
    (found,) = matchers.matchers([Rule("regex", "ab?")], lm.tokenizer, lm.config.vocab_size, (268,))
    ids = [lm.tokenizer.encode(text)[0] for text in "ab"]
    assert allowed(found, []) == {ids[0]}
    assert allowed(found, ids[:1]) == {ids[1], 268}
    assert allowed(found, ids) == {268}
    # Back and forth: the state is that of the text alone.
    assert allowed(found, []) == {ids[0]} and allowed(found, ids) == {268}


def allowed(found, text):
    words = np.full((1, found._vocabulary.num_words), 0xFFFFFFFF, np.uint32)
    found.masks(text, [0], [-1], words)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def test_masks_of_a_tree_are_those_of_its_paths(lm):
    rule = Rule("regex", "(ab|ac|b)[0-9]{2}")
    size = lm.config.vocab_size
    found, fresh = matchers.matchers([rule, rule], lm.tokenizer, size, lm.end_tokens)
    a, b, c, one, x = (lm.tokenizer.encode(text)[0] for text in "abc1x")
    tokens, parent = [0, a, b, c, b, one, one, x, b], [-1, 0, 0, 1, 1, 2, 3, 0, 7]
    words = np.full((len(tokens), found._vocabulary.num_words), 0xFFFFFFFF, np.uint32)
    found.masks([], tokens, parent, words)
    paths = [[], [a], [b], [a, c], [a, b], [b, one], [a, c, one]]
    for row, path in zip(words, paths, strict=False):
        bits = np.unpackbits(row.view(np.uint8), bitorder="little")
        assert set(np.flatnonzero(bits).tolist()) == allowed(fresh, path)
    assert (words[7:] == 0xFFFFFFFF).all(), "nothing is said about what cannot be reached"


def test_masks_of_the_wrong_node_are_noticed(lm, monkeypatch):
    right = grammar.masks

    def shifted(*args):
        words = right(*args)
        return None if words is None else jnp.roll(words, 1, axis=1)

    jax.clear_caches()
    monkeypatch.setattr(grammar, "masks", shifted)
    with pytest.raises((AssertionError, InputError, ValueError)):
        test_every_method_stays_in_the_language(lm, "forced")
    jax.clear_caches()


def test_sampled_l1_has_the_constrained_law(lm):
    """The first token of a constrained text under rejection, against masked scores."""
    form, num = "[a-d][0-9]", 1500
    out = write(lm, "speculative_sampling", "x", regex=form, n=num, batch_size=250, num_draft=2)
    ids = {lm.tokenizer.encode(text)[0]: i for i, text in enumerate("abcd")}
    scores = toys.full_logits(lm, lm.tokenizer.encode("x"))[0][-1][list(ids)].astype(np.float64)
    law = np.exp(scores - scores.max())
    law /= law.sum()
    counts = np.bincount([ids[tokens[0]] for tokens in out.tokens], minlength=4)
    assert ((counts - num * law) ** 2 / (num * law)).sum() < 21  # 3 degrees: 1 in 10,000


def test_forced_tokens_save_passes(lm):
    form = {"const": {"name": [1, 2, 3], "other": "a longer text that is known"}}
    ours, plain = (write(lm, name, json_schema=form) for name in ("forced", "ar"))
    assert ours.tokens == plain.tokens
    assert ours.stats[0].nfe < 0.3 * plain.stats[0].nfe


def test_another_grammar_compiles_nothing(lm):
    write(lm, "forced", regex="[ab]{4}")
    with toys.count_compilations() as compiled:
        write(lm, "forced", regex="[0-9]{2,5}")
    assert not compiled


def test_streaming_and_warmup(lm):
    asked = dict(json_schema=schemas.schema(3), max_new_tokens=48)
    jd.warmup(lm, batch_sizes=(1,), requests=[(8, 48)], **asked)
    with toys.count_compilations() as compiled:
        pieces = list(jd.stream(lm, "x name", **asked))
    assert not compiled
    assert "".join(pieces) == jd.generate(lm, "x name", **asked).texts[0]


def test_a_cut_structure_ends_by_length(lm):
    out = write(lm, "ar", json_schema=schemas.schema(3), max_new_tokens=2)
    assert set(out.finish_reasons) == {"length"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"regex": "[a-"}, "regex cannot be used"),
        ({"grammar": "start: foo"}, "grammar cannot be used.*foo"),
        ({"json_schema": {"unevaluatedItems": {}, "if": {}}}, "json_schema cannot be used"),
        ({"json_schema": {"enum": {3}}}, "not JSON"),
        ({"json_schema": "{}"}, "is a str; it must be a JSON schema"),
        ({"regex": ["a", "b"]}, "2 values for 3 prompts"),
        ({"regex": "a", "grammar": LARK}, "regex and grammar"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"regex": "a", "stop_tokens": [5]}, "stop token 5"),
        ({"regex": "a", "method": "superposed", "temperature": 0.0}, "cannot honour regex"),
        ({"json_schema": {}, "method": "superposed", "temperature": 0.0}, "honour json_schema"),
    ],
)
def test_what_cannot_be_is_refused(lm, asked, message):
    with pytest.raises(InputError, match=message):
        write(lm, **({"name": "ar"} | {k.replace("method", "name"): v for k, v in asked.items()}))


@pytest.mark.parametrize("name", toys.FILL)
def test_methods_that_fill_refuse_grammars(name):
    with pytest.raises(InputError, match="cannot honour grammar"):
        jd.generate(toys.filler(name), [[1]], method=name, grammar=LARK)


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(InputError, match="no tokenizer"):
        jd.generate(toys.model(), [[1]], regex="a")


def test_a_missing_library_names_its_extra(lm, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(matchers.importlib, "import_module", missing)
    with pytest.raises(UnsupportedError, match=r"jaxdecode\[constrained\]"):
        matchers.Vocabulary(lm.tokenizer, lm.config.vocab_size, (268,))
