"""The classifier: whose label is whose, its loss against plain passes, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.core.protocols import Weights
from jaxdecode.errors import InputError
from jaxdecode.heads import ctrldiff as heads
from jaxdecode.training import denoising, schedules
from jaxdecode.training.objective import Batch
from jaxdecode.training.objectives import ctrldiff
from tests import toys
from tests.training import gate

LABELS = (50, 51)


def packed():
    """Two texts in a row, a text whose answer only has a label, and one with two labels."""
    tokens = [
        [4, 51, 1, 5, 9, 50, 2, 6, 0],
        [5, 3, 5, 50, 9, 7, 9, 3, 2],
        [7, 50, 51, 8, 8, 8] + [0] * 3,
    ]
    segments = [[1, 1, 1, 1, 1, 2, 2, 2, 0], [1] * 9, [1] * 6 + [0] * 3]
    answer = [
        [0, 0, 0, 1, 1, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 1] + [0] * 3,
    ]
    place = [[0, 1, 2, 3, 4, 0, 1, 2, 0], list(range(9)), [*range(6), 0, 0, 0]]
    ids = [jnp.asarray(part, jnp.int32) for part in (tokens, place, segments)]
    return Batch(
        tokens=ids[0], positions=ids[1], segments=ids[2], weight=jnp.asarray(answer, jnp.float32)
    )


def test_a_label_is_the_first_one_of_its_own_prompt():
    is_label, wanted = ctrldiff.classes(LABELS, packed())
    np.testing.assert_array_equal(np.argwhere(np.asarray(is_label)), [[0, 1], [0, 5], [2, 1]])
    np.testing.assert_array_equal(wanted[0, :8], [1, 1, 1, 1, 1, 0, 0, 0])
    assert (np.asarray(wanted[1]) == -1).all()
    np.testing.assert_array_equal(wanted[2, :6], [0] * 6)


@pytest.mark.slow
def test_the_loss_is_its_formula():
    lm, batch = toys.denoiser(), packed()
    made, _ = gate.objective("ctrldiff", lm=lm, labels=LABELS)
    params = gate.random_heads("ctrldiff", {}, lm).params
    key, mask = jax.random.key(2), lm.config.denoiser.mask_token
    found, metrics = jax.jit(made.loss)(params, lm.params, batch, key, gate.MOMENT)
    level, hide = jax.random.split(key)
    share = schedules.antithetic(level, *batch.tokens.shape)
    share = jnp.take_along_axis(share, denoising.groups(batch), axis=1)
    masked = np.asarray(denoising.drawn(hide, share, batch.weight))
    errors, rights = [], []
    for row, part, label, wanted in (
        (0, slice(0, 5), 1, 1),
        (0, slice(5, 8), 0, 0),
        (2, slice(0, 6), 1, 0),
    ):
        text = np.where(masked, mask, batch.tokens)[row, part]
        text[label] = mask
        law = np.array(toys.whole(lm, text.tolist()), np.float64)
        law[:, mask] = -np.inf
        law = np.exp(law - law.max(-1, keepdims=True))
        law /= law.sum(-1, keepdims=True)
        table = np.asarray(params["table"])
        own = np.where(masked[row, part][:, None], law @ table, table[batch.tokens[row, part]])
        mean = own[np.asarray(batch.weight[row, part]) > 0].mean(0)
        classes = np.asarray(heads.log_probs(params, jnp.asarray(mean, jnp.float32)))
        errors.append(-classes[wanted])
        rights.append(classes.argmax() == wanted)
    assert float(found) == pytest.approx(np.mean(errors), rel=1e-3)
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(rights), abs=1e-5)
    assert float(metrics["labelled"]) == pytest.approx(3 / 4)


def test_only_the_classifier_learns_and_never_from_a_label_that_is_seen():
    """Its last layer begins at zero, so the features have nothing to learn yet."""
    lm, batch = toys.denoiser(), packed()
    made, _ = gate.objective("ctrldiff", lm=lm, labels=LABELS)
    assert gate.learns_alone("ctrldiff", batch, lm=lm, still=("table",), labels=LABELS)
    params = gate.random_heads("ctrldiff", {}, lm).params
    loss = jax.jit(
        lambda batch: made.loss(params, lm.params, batch, jax.random.key(0), gate.MOMENT)
    )
    ones = gate.batch([[50, 8, 8, 8, 9, 4]], 1), gate.batch([[51, 8, 8, 8, 9, 4]], 1)
    a, b = (float(loss(jax.tree.map(jnp.asarray, one))[0]) for one in ones)
    # The two classes' losses of one text: their probabilities sum to 1.
    assert np.exp(-a) + np.exp(-b) == pytest.approx(1.0, abs=1e-5)


def test_it_learns_which_tokens_an_attribute_has():
    """Label 51 before even tokens, 50 before odd ones; held-out texts, half of them undecided."""
    lm, rng = toys.denoiser(), np.random.default_rng(0)

    def texts(count):
        kind = rng.integers(0, 2, count)
        answers = 2 * rng.integers(0, 25, (count, 8)) + (1 - kind)[:, None]
        return gate.batch([[LABELS[k], *row] for k, row in zip(kind, answers, strict=True)], 1)

    made, _ = gate.objective("ctrldiff", lm=lm, labels=LABELS, shape={"num_hidden": 8})
    data = jax.tree.map(jnp.asarray, texts(32))
    params, values = gate.train(made, lm, data, steps=150, lr=3e-2)
    _, metrics = jax.jit(made.loss)(params, lm.params, data, jax.random.key(9), gate.MOMENT)
    assert values[0] == pytest.approx(np.log(2), abs=1e-3)
    assert values[-10:].mean() < 0.35 and float(metrics["accuracy"]) > 0.8
    tables = np.asarray([heads.pull(params, jnp.zeros(8), jnp.float32(1), k) for k in (0, 1)])
    even = tables[1, :50:2].mean() - tables[1, 1:50:2].mean()
    odd = tables[0, 1:50:2].mean() - tables[0, :50:2].mean()
    assert even > 0.1 and odd > 0.1


def test_what_does_not_fit_is_refused():
    lm = toys.denoiser()
    with pytest.raises(InputError, match="name a target that fills slots"):
        gate.objective("ctrldiff")
    with pytest.raises(InputError, match="a token twice"):
        ctrldiff.Config(labels=(1, 1))
    with pytest.raises(InputError, match="labels="):
        ctrldiff.Config(labels=(-1, 1))
    made, _ = gate.objective("ctrldiff", lm=lm, labels=(1, 2, 3))
    with pytest.raises(InputError, match=r"names 3 tokens, but shape.num_classes is 2"):
        made.init(jax.random.key(0), Weights(lm.params), None)
