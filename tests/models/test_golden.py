"""The models against an independent implementation, on tiny models of every family."""

import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import api
from tests import toys
from tests.golden import corpus

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=corpus.TINY)
def case(request):
    golden = corpus.load_golden(request.param)
    return jd.load(corpus.tiny_folder(request.param), dtype="float32"), golden


def test_logits_and_hidden_states(case):
    lm, golden = case
    tap = f"layer.{golden['meta']['hidden_layer']}"
    for row, prompt in enumerate(corpus.prompts(golden)):
        logits, hidden = toys.full_logits(lm, prompt, taps=(tap,))
        np.testing.assert_allclose(
            logits, golden["logits"][row, : len(prompt)], atol=TOLERANCE, rtol=0
        )
        np.testing.assert_allclose(
            hidden[tap], golden["hidden"][row, : len(prompt)], atol=TOLERANCE, rtol=0
        )


def test_greedy_tokens(case):
    lm, golden = case
    prompts = corpus.prompts(golden)
    new = golden["greedy"].shape[1]
    out = jd.generate(lm, prompts, max_new_tokens=new, ignore_eos=True)
    assert out.tokens == golden["greedy"].tolist()


def test_a_wrong_model_is_noticed(case):
    lm, golden = case
    embedding = lm.params["embed"]["embedding"]
    broken = {**lm.params, "embed": {"embedding": embedding * 1.01}}
    prompt = corpus.prompts(golden)[0]
    logits, _ = toys.full_logits(api.from_params(lm.config, broken), prompt)
    assert np.abs(logits - golden["logits"][0, : len(prompt)]).max() > TOLERANCE
