"""Every sampling feature under every method: as in plain decoding, or refused by name."""

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError
from tests import toys

PROMPTS = ["abcab", "e", "hellohello"]
FEATURES = {
    "temperature": {"temperature": 0.8},
    "top_k": {"top_k": 12},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.02},
    "repetition_penalty": {"repetition_penalty": 1.2},
    "logit_bias": {"logit_bias": {5: 1.5, 30: -2.0}},
    "stop": {"stop": ["oj", "m"]},
    "stop_tokens": {"stop_tokens": [31]},
    "ignore_eos": {"ignore_eos": True},
    "n": {"n": 2},
    "seed": {"seed": 11},
}
# What makes a feature visible: the others only matter when something is drawn.
DRAWN = ("top_k", "top_p", "min_p", "n", "seed")


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return toys.spelling(tmp_path_factory.mktemp("tokenizer"))


def decode(lm, name, asked):
    more = {"max_new_tokens": 12} | toys.helpers(name, lm) | asked
    return jd.generate(lm, PROMPTS, method=name, **more)


def options_of(features):
    merged = {}
    for feature in features:
        merged |= FEATURES[feature]
    return merged


def check(lm, name, features):
    """The method's texts, scores and ends under these features are those of plain decoding."""
    asked = options_of(features)
    if METHODS[name].level != "L0" and asked.get("temperature", 0) > 0:
        # Exact in law only: where the law has one token, in tokens too.
        asked |= {"top_k": 1}
    if METHODS[name].level not in ("L0", "L1"):
        decode(lm, name, asked)
        asked |= toys.strict(name)
    ours, plain = decode(lm, name, asked), decode(lm, "ar", _without(asked, toys.strict(name)))
    assert (ours.tokens, ours.texts) == (plain.tokens, plain.texts)
    assert ours.finish_reasons == plain.finish_reasons
    for found, wanted in zip(ours.logprobs, plain.logprobs, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def _without(asked, extra):
    return {key: value for key, value in asked.items() if key not in extra}


def refused(name):
    return [feature for feature in FEATURES if feature in METHODS[name].refuses]


@pytest.mark.parametrize("name", toys.core_first(toys.LOOP))
def test_all_features_at_once(lm, name):
    check(lm, name, [feature for feature in FEATURES if feature not in refused(name)])


@pytest.mark.parametrize(("name", "feature"), [(n, f) for n in toys.LOOP for f in refused(n)])
def test_what_a_method_cannot_honour_is_refused_by_name(lm, name, feature):
    with pytest.raises(InputError, match=feature):
        decode(lm, name, FEATURES[feature])


@pytest.mark.slow
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("name", toys.LOOP)
def test_each_feature_alone(lm, name, feature):
    if feature in refused(name):
        return
    drawn = feature in DRAWN and "temperature" not in refused(name)
    check(lm, name, [feature, "temperature"] if drawn else [feature])


def test_features_change_something(lm):
    usual = decode(lm, "ar", options_of(["temperature"])).tokens
    for feature in set(FEATURES) - {"temperature", "ignore_eos"}:
        changed = decode(lm, "ar", options_of(["temperature", feature])).tokens
        assert changed != usual, f"{feature} makes no difference here, so it proves nothing"
