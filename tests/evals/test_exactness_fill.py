"""Laws of texts that are filled slot by slot: known by hand, proven for lines, twins convicted."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.core.registry import METHODS
from jaxdecode.errors import InputError
from jaxdecode.evals import (
    exactness,
    exactness_fill,
    exactness_insert,
    filling,
    oracles,
    sampled,
    toys,
)
from tests.toys import FILL

TABLE = ((0.5, 0.1), (0.1, 0.3))


@pytest.mark.parametrize("order", ["left_to_right", "random", "probability"])
def test_one_by_one_a_model_that_knows_its_text_gives_its_law(order):
    """Marginals of one joint law, in any order: the chain rule is that law."""
    ask = filling.conditionals(oracles.table_model(TABLE), (0,), 2, temperature=1.0)
    law = filling.one_by_one(ask, order)
    assert law.sum() == pytest.approx(1.0)
    if order == "probability":  # which slot is sure of its draw depends on the draw
        assert abs(law[:2, :2] - TABLE).max() > 0.01
    else:
        np.testing.assert_allclose(law[:2, :2], TABLE, atol=1e-6)


def test_the_order_of_likeliest_draws_against_all_draws_by_hand():
    ask = exactness_fill._asked()
    index = int((ask.canvas == [2, 5, 5, 5]).all(1).argmax())
    sure = np.exp(ask.scores[index] - np.log(np.exp(ask.scores[index]).sum(-1, keepdims=True)))
    expected = np.zeros((4, 6))
    for draw in itertools.product(range(5), repeat=3):
        chance = math.prod(ask.probs[index, i + 1, v] for i, v in enumerate(draw))
        best = max(range(3), key=lambda i: sure[i + 1, draw[i]])
        expected[best + 1, draw[best]] += chance
    np.testing.assert_allclose(filling._likeliest(ask)[index], expected, atol=1e-12)


def test_orders_have_laws_of_their_own():
    orders = ("left_to_right", "random", "probability", "margin", "entropy")
    laws = [exactness_fill.law_of(order) for order in orders]
    for one, other in itertools.combinations(laws, 2):
        assert 0.5 * abs(one - other).sum() > 0.01
    assert all(law[..., 5].sum() == 0 and law.sum() == pytest.approx(1.0) for law in laws)


@pytest.mark.parametrize("order", ["margin", "entropy"])
def test_the_rule_follows_orders_that_look_at_laws_only(order):
    method = exactness_fill._setup("llada", {"order": order}).method
    assert method.commit is not None
    law = filling.by_rule(exactness_fill._asked(), method.commit.select, None)
    np.testing.assert_allclose(law, exactness_fill.law_of(order), atol=1e-9)


def test_a_rule_that_decides_all_at_once_gives_the_product_of_the_marginals():
    method = exactness_fill._setup("llada", {"steps": 1}).method
    ask = exactness_fill._asked()
    assert method.commit is not None
    law = filling.by_rule(ask, method.commit.select, None)
    first = ask.probs[-1]
    wanted = np.einsum("a,b,c,d->abcd", *first)
    np.testing.assert_allclose(law, wanted, atol=1e-9)


@pytest.mark.parametrize("name", ["llada", "fast_dllm"])
def test_a_line_is_proven_and_its_twin_convicted(name, monkeypatch):
    monkeypatch.setattr(sampled, "ROWS", 2048)
    if name == "llada":  # the other orders are for the slow tests
        monkeypatch.setitem(exactness_fill.STRICT, "quota", exactness_fill.STRICT["quota"][1:])
    proof = exactness.prove(name, 8_000)
    assert proof.passed, proof
    assert proof.twin_variation > 1e-2 and proof.twin_p_value is not None
    assert proof.twin_p_value < 1e-6
    assert (proof.default_variation is None) == (name == "llada")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FILL if exactness_fill.provable(name)])
def test_every_line_is_proven_with_many_samples(name):
    proof = exactness.prove(name, 60_000)
    assert proof.passed, proof


def test_a_wrong_draw_is_convicted_by_samples():
    """Candidates of another temperature, behind the right rule."""
    ready = exactness_fill._setup(
        "llada", exactness_fill.WHOLE["denoise"] | {"order": "left_to_right"}
    )

    def cooler(weights, request, canvas, proposal, output):
        output = type(output)(**(vars(output) | {"logits": 0.8 * output.logits}))
        return ready.method.verifier.verify(weights, request, canvas, proposal, output)

    verifier = ready.method.verifier._replace(verify=cooler)
    broken = ready._replace(method=ready.method._replace(verifier=verifier))
    found = sampled.counts(broken, 8_000).cells
    assert sampled.chi_square(found, exactness_fill.law_of("left_to_right")) < 1e-6


def test_a_line_that_promises_the_tokens_of_another_is_compared_with_it(monkeypatch):
    monkeypatch.setitem(METHODS, "same", METHODS["llada"])
    monkeypatch.setattr(exactness_fill, "TEXTS", 32)
    right = exactness.prove("same")
    assert right.passed and right.twin_variation > 0.05
    hasty = {"block_length": 4, "reuse": "none", "threshold": 0.2}
    monkeypatch.setitem(METHODS, "other", METHODS["fast_dllm"]._replace(level="L0", options=hasty))
    wrong = exactness.prove("other")
    assert not wrong.passed and wrong.variation > 0.1


def test_the_law_of_insertions_sums_over_the_orders_of_two():
    lm, prompt = toys.denoiser(inserts=True), (0, 1)
    law = exactness_insert.law_of(lm, prompt, 2, 0.9)
    first = exactness_insert.insertions(lm, prompt, np.zeros((1, 0), int), 0.9)[0, 0]
    then = exactness_insert.insertions(lm, prompt, np.arange(6)[:, None], 0.9)
    assert law.sum() == pytest.approx(1.0) and law[5].sum() == law[:, 5].sum() == 0
    for a, b in ((0, 3), (2, 2), (4, 1)):
        assert law[a, b] == pytest.approx(first[a] * then[a, 1, b] + first[b] * then[b, 0, a])


def test_insertions_are_proven_and_their_twin_convicted(monkeypatch):
    monkeypatch.setattr(sampled, "ROWS", 2048)
    proof = exactness.prove("ilm", 8_000)
    assert proof.passed, proof
    assert proof.p_value > 1e-3 and proof.twin_p_value < 1e-6 and proof.samples == 8192


def test_a_rule_without_a_setting_to_prove_is_refused(monkeypatch):
    monkeypatch.setitem(METHODS, "new", METHODS["fast_dllm"]._replace(commit="new"))
    assert "new" not in exactness.names("all")
    with pytest.raises(InputError, match="no setting of method 'new' is known"):
        exactness.names("new")


def test_the_toy_depends_on_everything_that_is_decided():
    ask = exactness_fill._asked()
    alone = ask.probs[(ask.canvas[:, 1:] == 5).all(1) & (ask.canvas[:, 0] < 5), 3]
    assert len(alone) == 5 and np.ptp(alone, axis=0).max() > 0.05
    assert ask.probs.shape == (toys.VOCAB**4, 4, toys.VOCAB) and jnp.isfinite(ask.probs).all()
