"""Runs over every line that fills slots: what any of them must do, whatever its rule is."""

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError
from tests import toys

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
MASK = toys.denoiser().config.denoiser.mask_token
# One line per way of proposing and deciding; the others run with the slow tests.
CORE = ("llada", "fast_dllm", "mdlm", "rcr", "adablock", "cfg", "dkv_cache", "assd", "edlm", "ilm")
NAMES = [n if n in CORE else pytest.param(n, marks=pytest.mark.slow) for n in toys.FILL]
# Rules that look at stop tokens, and options with which they do not.
BLIND = {
    "eoser": {"end_weight": 1.0},
    "learn2pd": {"end_prediction": False},
    "tracelock": {"guard_end": False},
}
LAWS = [{}, {"temperature": 0.9, "seed": 4}]


def generate(name, prompts=PROMPTS, lm=None, **asked):
    lm = lm or toys.filler(name)
    asked = {"max_new_tokens": 17} | toys.fitting(name) | asked
    return jd.generate(lm, prompts, method=name, **toys.helpers(name, lm) | asked)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", NAMES)
def test_a_row_in_a_batch_is_the_row_alone(name, law):
    out = generate(name, **law)
    for i, prompt in enumerate(PROMPTS):
        alone = generate(name, [prompt], **law)
        assert out.tokens[i] == alone.tokens[0] and out.steps[i] == alone.steps[0]
        assert (out.stats[i].nfe, out.stats[i].tokens_forwarded) == (
            alone.stats[0].nfe,
            alone.stats[0].tokens_forwarded,
        )
        np.testing.assert_allclose(out.logprobs[i], alone.logprobs[0], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_slot_is_decided_once_and_counts_add_up(name):
    out = generate(name, temperature=0.9)
    for stats, tokens, steps in zip(out.stats, out.tokens, out.steps, strict=True):
        assert len(tokens) == 17 and MASK not in tokens
        assert min(steps) >= 0 and max(steps) < stats.nfe <= stats.tokens_forwarded
        assert stats.acceptance_length == len(tokens) / stats.nfe


@pytest.mark.parametrize("name", NAMES)
def test_text_ends_where_its_first_stop_token_is(name):
    asked = BLIND.get(name, {})
    if "stop_tokens" in METHODS[name].refuses:
        with pytest.raises(InputError, match="cannot honour stop_tokens"):
            generate(name, stop_tokens=[5])
        return
    free = generate(name, **asked)
    stop = free.tokens[0][6]
    out = generate(name, stop_tokens=[stop], **asked)
    for ours, whole in zip(out.tokens, free.tokens, strict=True):
        assert ours == (whole[: whole.index(stop) + 1] if stop in whole else whole)
    assert out.finish_reasons[0] == "stop"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_compiles_for_other_rows_of_the_same_sizes(name):
    generate(name)
    with toys.count_compilations() as events:
        generate(name, [[1, 2, 3], [4, 5], [6]])
    assert events == []


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_cannot_fill_is_refused(name):
    with pytest.raises(InputError, match=f"method '{name}' cannot run this model"):
        generate(name, lm=toys.model())


def test_a_model_that_fills_is_refused_by_methods_that_write_on():
    with pytest.raises(InputError, match="method 'ar' cannot run this model, which fills"):
        jd.generate(toys.denoiser(), PROMPTS, method="ar")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"block_length": 8, "reuse": "block"}, "reuse='block' needs a model whose blocks"),
        ({"reuse": "dual"}, "reuse='dual' needs blocks; give block_length"),
        ({"block_length": -1}, "block_length"),
        ({"reuse": "all"}, "reuse='all' is not known"),
        ({"order": "size"}, "order='size' is not known"),
        ({"schedule": "odd"}, "schedule='odd' is not known"),
        ({"threshold": 0.9}, "option 'threshold' is not known"),
    ],
)
def test_options_that_do_not_fit_are_refused(asked, message):
    with pytest.raises(InputError, match=message):
        generate("llada", **asked)


def test_options_that_do_not_fit_blocks_of_the_model_are_refused():
    lm = toys.denoiser(block=8)
    with pytest.raises(InputError, match="trained with blocks of 8"):
        generate("llada", lm=lm, block_length=4)
    with pytest.raises(InputError, match="reuse is exact|whose reuse is exact"):
        generate("llada", lm=lm, reuse="dual")


@pytest.mark.parametrize("threshold", [0, 1.5, float("nan")])
def test_a_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(InputError, match=r"threshold=.* a number in \(0, 1\]"):
        generate("fast_dllm", threshold=threshold)
