"""Nested exits: with the threshold at its ends they are the draft model cut short, or whole."""

import pytest

import jaxdecode as jd
from jaxdecode import api
from jaxdecode.errors import InputError
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [2, 6, 5, 3, 5, 8, 9, 7, 9]]


def trace(draft, **asked):
    """Tokens and the step of each, sampled so that drafts are right now and then."""
    law = dict(max_new_tokens=20, temperature=0.8, seed=3)
    out = jd.generate(toys.model(), PROMPTS, draft=draft, **law, **asked)
    return out.tokens, out.steps


def test_first_exit_is_the_draft_model_cut_short():
    whole = toys.model(seed=5)
    cut = toys.config(num_layers=1, layer_windows=(0,))
    short = api.from_params(cut, whole.params | {"layers": whole.params["layers"][:1]})
    always_first = trace(whole, method="s2d", exits=(1,), confidence=0.0)
    always_whole = trace(whole, method="s2d", exits=(1,), confidence=2.0)
    assert always_first == trace(short, method="draft_model")
    assert always_whole == trace(whole, method="draft_model")
    assert always_first[0] == always_whole[0] and always_first[1] != always_whole[1]


def test_exits_are_checked():
    with pytest.raises(InputError, match="exits=.3,. go past the draft model's 2 layers"):
        trace(toys.model(seed=5), method="s2d", exits=(3,))
