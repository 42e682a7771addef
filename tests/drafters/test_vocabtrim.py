"""Trimmed heads: which tokens stay, and that nothing else changes."""

import jax
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode import engine as engines
from jaxdecode import options
from jaxdecode.drafters import vocabtrim
from jaxdecode.errors import InputError
from tests import toys
from tests.drafters.test_draft_model import LAW, PROMPTS


def test_the_most_frequent_tokens_stay_then_the_lowest():
    kept = vocabtrim.most_frequent(np.bincount([7, 7, 9, 9, 9, 4], minlength=12), 4)
    assert kept.tolist() == [0, 4, 7, 9]
    assert vocabtrim.most_frequent(np.zeros(12, int), 3).tolist() == [0, 1, 2]
    assert vocabtrim.most_frequent(np.zeros(12, int), 99).tolist() == list(range(12))


def test_keeping_all_is_the_draft_model_bit_for_bit():
    lm, draft = toys.model(), toys.model(seed=5)
    asked = dict(draft=draft, max_new_tokens=14, **LAW)
    whole = jd.generate(lm, PROMPTS, method="draft_model", **asked)
    trimmed = jd.generate(lm, PROMPTS, method="vocabtrim", keep=61, **asked)
    assert trimmed.tokens == whole.tokens and trimmed.logprobs == whole.logprobs
    assert [s.nfe for s in trimmed.stats] == [s.nfe for s in whole.stats]


def test_only_kept_tokens_are_drafted():
    lm = toys.model()
    engine = toys.drafted(lm, "vocabtrim", lm, keep=20, calibration=(60, 60, 59))
    own = engine.weights.drafter
    assert own.head["head"]["kernel"].shape[0] == 20
    standing = np.flatnonzero(np.asarray(own.column) >= 0).tolist()
    assert standing == [*range(18), 59, 60]
    request = toys.request(lm, options.Options(temperature=0.9), PROMPTS)
    state = engines.prefilled(engine, request, PROMPTS, 20)
    proposal, _ = jax.jit(engine.method.drafter.propose)(
        engine.weights, state.drafter, request, state.canvas, None
    )
    drafted = np.asarray(proposal.tokens)[:, 1:][np.asarray(proposal.valid)[:, 1:]]
    assert set(drafted.tolist()) <= set(standing) and len(drafted)


def test_ids_outside_the_vocabulary_are_refused():
    lm = toys.model()
    with pytest.raises(InputError, match="61"):
        jd.generate(lm, [[1]], method="vocabtrim", draft=lm, calibration=(61,))
