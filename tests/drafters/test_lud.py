"""Lexical units: the rule of confidence and the finder by hand, pads, the loss, the gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.protocols import Weights
from jaxdecode.drafters import lud
from jaxdecode.errors import InputError
from jaxdecode.evals import toys as smallest
from jaxdecode.training.objectives import lud as objective
from tests import toys
from tests.training import gate

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
LAW = {"temperature": 0.9, "seed": 4}
VERIFIED = {"min_prob": 0.0, "verify": True}
TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def test_the_longest_sure_run_is_sent():
    # The paper's pass says the next token with .99, which is committed anyway; then its pads.
    most = np.asarray([0.95, 0.97, 0.6, 0.98])
    law = np.stack([most, 1 - most], axis=-1)[None]
    ids, known = lud.sure(jnp.log(jnp.asarray(law)), 0.9)
    assert 1 + int(known[0]) == 3 and ids.tolist() == [[0, 0, 0, 0]]
    assert int(lud.sure(jnp.log(jnp.asarray(law)), 1.1)[1][0]) == 0


def test_units_by_hand():
    prob = [0.95, 0.99, 0.2, 0.97, 0.93, 0.91, 0.99]
    ahead = jnp.asarray([[*prob[1:], 0.0]])
    one = jnp.ones((1, 7), int)
    # The first token of a text is given: nothing says how likely it was.
    assert objective.places(ahead, one, 0.9, 3).tolist() == [[0, 0, 0, 0, 1, 2, 0]]
    shifted = jnp.asarray([[*prob, 0.0]])
    whole = objective.places(shifted, jnp.ones((1, 8), int), 0.9, 3)[0, 1:7].tolist()
    assert whole == [0, 1, 0, 0, 1, 2], "units 0-1, 2 and 3-5"
    two = jnp.asarray([[1, 1, 1, 1, 1, 2, 2]])
    assert objective.places(ahead, two, 0.9, 3).tolist() == [[0, 0, 0, 0, 1, 0, 1]]


@pytest.mark.parametrize(
    ("asked", "law"),
    [({"min_prob": 1.1}, LAW), (VERIFIED, {}), (VERIFIED, LAW)],
)
def test_tokens_are_those_of_plain_decoding_without_trust(asked, law):
    lm = smallest.model()
    prompts = [[3, 1, 4, 1, 5], [2], [2, 0, 5, 3, 5, 1, 4, 1, 3]]
    out = jd.generate(lm, prompts, method="lud", max_new_tokens=24, **asked, **law)
    assert out.tokens == jd.generate(lm, prompts, max_new_tokens=24, **law).tokens
    if "verify" in asked:
        assert sum(row.nfe for row in out.stats) < 3 * 24, "some guess was right"


def test_what_is_sent_is_believed():
    lm = toys.model()
    out = jd.generate(lm, PROMPTS, method="lud", max_new_tokens=21, min_prob=0.0)
    assert [row.nfe for row in out.stats] == [5] * 3, "one token, then five per pass"
    assert out.tokens != jd.generate(lm, PROMPTS, max_new_tokens=21).tokens


def test_bad_options_are_refused_by_name():
    lm = toys.model()
    for asked, message in (
        ({"pad_token": 61}, "pad_token=61 is no token"),
        ({"num_draft": 0}, "num_draft=0"),
        ({"min_prob": -1}, "min_prob=-1"),
        ({"verify": 1}, "verify=1"),
    ):
        with pytest.raises(InputError, match=message):
            jd.generate(lm, [[1]], method="lud", **asked)


def test_the_loss_is_that_of_the_text_and_of_units_and_the_target_gets_no_gradient():
    lm = toys.model()
    made, _ = gate.objective("lud", num_draft=2, min_prob=0.0)
    data = gate.batch([TEXT])
    params = made.init(jax.random.key(0), Weights(lm.params), None).params

    def loss(params, target):
        return made.loss(params, target, data, jax.random.key(0), gate.MOMENT)

    found, metrics = jax.jit(loss)(params, lm.params)
    logits = toys.full_logits(lm, TEXT)[0]
    law = jax.nn.log_softmax(logits[:-1])
    text = -np.mean([law[t, TEXT[t + 1]] for t in range(9)])
    np.testing.assert_allclose(metrics["text"], text, rtol=1e-5)
    # Everything is sure: units of three from the first token on. Pads follow tokens 2 and 5.
    errors = []
    for t in (2, 5):
        rows = toys.full_logits(lm, TEXT[: t + 1] + [0, 0])[0]
        for j in range(2):
            errors.append(-jax.nn.log_softmax(rows[t + 1 + j])[TEXT[t + 2 + j]])
    np.testing.assert_allclose(metrics["units"], np.mean(errors), rtol=1e-5)
    np.testing.assert_allclose(found, metrics["text"] + metrics["units"], rtol=1e-6)
    own, others = jax.jit(jax.grad(lambda *args: loss(*args)[0], argnums=(0, 1)))(params, lm.params)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(own))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(others))


QUICK = {
    "settings": {"num_draft": 3, "min_prob": 0.0, "rank": 8},
    "num_draft": 3,
    "min_prob": 0.0,
    "verify": True,
    "blind": 1,
    "num_new": 33,
}


def test_the_overfit_gate():
    assert gate.passes("lud", depth=3, **QUICK)


@pytest.mark.slow
def test_the_gate_can_fail():
    assert not gate.passes("lud", depth=3, steps=3, **QUICK)
