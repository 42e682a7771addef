"""The loop over noise: rows are strangers, stops hold, and what cannot be honoured is refused."""

import functools

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.convert.heads import shape_of
from jaxdecode.core.protocols import HeadSpec
from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError
from jaxdecode.evals import toys as smallest
from tests import toys
from tests.continuous import learned

METHOD = [name for name, entry in METHODS.items() if entry.continuous]
SIZES = {
    "neodiff": learned.NEODIFF,
    "cosmos": {
        "num_latents": 2,
        "latent_size": 8,
        "width": 32,
        "num_heads": 2,
        "num_coder_layers": 1,
        "num_layers": 1,
        "max_length": 12,
    },
    "ladic": {
        "width": 32,
        "num_heads": 2,
        "num_layers": 1,
        "num_reader_layers": 1,
        "max_length": 12,
    },
}
# Of one bucket: what is compiled for one is compiled for all.
ROWS = [[3, 1, 4, 1, 5, 3, 1], [9], [2, 6, 5, 3, 5, 8, 9, 7]]


@functools.cache
def heads(name):
    kind = METHODS[name].heads
    made = smallest.random_heads(HeadSpec(kind, shape_of(kind, SIZES[name])), toys.model())
    if "exists" in made.params:  # a token at most places: texts are not all one token long
        made.params["exists"]["bias"] += 3.0
    return made


def write(name, rows=ROWS, **asked):
    asked = {"max_new_tokens": 12, "steps": 3, "heads": heads(name)} | asked
    return jd.generate(toys.model(), rows, method=name, **asked)


@pytest.mark.parametrize("name", METHOD)
def test_a_row_alone_is_the_row_in_a_batch_and_nothing_compiles_twice(name):
    asked = {"temperature": 1.0, "seed": 3}
    together = write(name, **asked)
    assert len({tuple(tokens) for tokens in together.tokens}) == len(ROWS)
    alone = write(name, batch_size=1, **asked)
    assert alone.tokens == together.tokens
    assert alone.finish_reasons == together.finish_reasons
    np.testing.assert_allclose(sum(alone.logprobs, []), sum(together.logprobs, []), atol=1e-4)
    with toys.count_compilations() as compiled:
        assert write(name, ROWS[::-1], **asked).tokens == together.tokens[::-1]
        assert write(name, **asked | {"seed": 4}).tokens != together.tokens
    assert compiled == []


@pytest.mark.parametrize("name", METHOD)
def test_nothing_is_written_past_a_stop_or_the_room_there_is(name):
    whole = write(name).tokens
    at = max(range(len(whole)), key=lambda i: len(whole[i]))
    text = whole[at]
    assert len(text) > 3
    stop = text[2]
    cut = write(name, stop_tokens=[stop])
    assert cut.tokens[at] == text[: text.index(stop) + 1]
    assert cut.finish_reasons[at] == "stop"
    short = write(name, max_new_tokens=2)
    assert short.tokens[at] == text[:2] and short.finish_reasons[at] == "length"
    assert len(short.logprobs[at]) == len(short.steps[at]) == 2


def test_temperature_is_about_the_rounding():
    """The vectors are the same, so a law that keeps one token gives the greedy text."""
    greedy = write("neodiff").tokens
    assert write("neodiff", temperature=1.0, top_k=1).tokens == greedy
    assert write("neodiff", temperature=2.0).tokens != greedy
    never = greedy[0][0]
    assert never not in write("neodiff", logit_bias={never: -1e9}).tokens[0]


@pytest.mark.parametrize("name", METHOD)
def test_what_cannot_be_honoured_is_refused(name):
    lm, given = toys.model(), {"method": name, "heads": heads(name)}
    for asked, message in (
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"regex": "a+"}, "regex"),
        ({"trace": True}, "cannot be traced"),
        ({"draft": toys.model(seed=5)}, "draft"),
        ({"heads": None}, "needs trained heads"),
        ({"no_such": 1}, "no_such"),
    ):
        with pytest.raises(InputError, match=message):
            jd.generate(lm, [3, 4], **given | asked)
    with pytest.raises(InputError, match="beside the loop"):
        jd.warmup(lm, **given)
    with pytest.raises(InputError, match="one token after the other"):
        jd.infill(lm, {"tokens": [3, None]}, **given)
    assert name in jd.explain(name) and "continuous" in jd.explain(name)
