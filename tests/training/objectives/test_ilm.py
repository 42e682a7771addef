"""Insertion: what is left of a text, the loss written out, and a law that is learned."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.core.protocols import Models
from jaxdecode.errors import InputError
from jaxdecode.evals import oracles
from jaxdecode.training.objectives import ilm
from tests import toys
from tests.training import gate
from tests.training.test_denoising import MASK, packed

A, B, C = 11, 12, 13


def test_what_is_left_by_hand():
    """A prompt of two, then A B C; B and C go, and both belong after A."""
    batch = gate.batch([[7, 8, A, B, C]], prompt=2)
    rest = ilm.left(batch, jnp.asarray([[False, False, False, True, True]]))
    assert rest.after.tolist() == [[0, 1, 2, 2, 2]]
    assert rest.places.tolist() == [[False, True, True, False, False]]
    assert rest.batch.positions[0, :3].tolist() == [0, 1, 2]
    assert rest.batch.segments.tolist() == [[1, 1, 1, -1, -1]]
    rest = ilm.left(batch, jnp.asarray([[False, False, True, True, False]]))
    assert rest.after.tolist() == [[0, 1, 1, 1, 4]]
    assert rest.places.tolist() == [[False, True, False, False, True]]
    assert rest.batch.positions[0, 4] == 2


def loss_by_hand(lm, batch, taken):
    """The mean over texts, with shorter lists in place of masks."""
    total, texts = 0.0, 0
    for row in range(len(batch.tokens)):
        for text in sorted(set(batch.segments[row].tolist()) - {0}):
            at = np.flatnonzero(batch.segments[row] == text)
            tokens, gone, weight = batch.tokens[row, at], taken[row, at], batch.weight[row, at] > 0
            if not weight[1:].any():
                continue
            kept = np.flatnonzero(~gone)
            scores = toys.whole(lm, tokens[kept].tolist()).astype(np.float64)
            sign = 1 if gone.any() else -1
            total, texts = total + np.logaddexp(0, sign * scores[0, MASK]), texts + 1
            scores[:, MASK] = -np.inf
            may = [weight[i] or (i + 1 < len(at) and weight[i + 1]) for i in kept]
            joint = scores[may] - np.log(np.exp(scores[may]).sum())
            rows = np.flatnonzero(may).tolist()
            for i in np.flatnonzero(gone):
                place = rows.index(int((kept < i).sum()) - 1)
                total -= joint[place, tokens[i]] / gone.sum()
    return total / texts


@pytest.mark.parametrize("seed", range(3))
def test_loss_written_out(seed, monkeypatch):
    """Several texts per row, some with prompts, one whole; and a batch without any answer."""
    lm = toys.denoiser(inserts=True)
    batch = jax.tree.map(np.asarray, packed())
    wanted = np.random.default_rng(seed).uniform(size=batch.tokens.shape) < 0.4
    taken = wanted & (batch.weight > 0) & (batch.positions > 0)
    taken[0, batch.segments[0] == 1] = False
    monkeypatch.setattr(ilm.denoising, "drawn", lambda key, rate, weight: jnp.asarray(taken))
    made = ilm.make(ilm.Config(), Models(lm.bound))
    found, metrics = jax.jit(made.loss)(lm.params, {}, batch, jax.random.key(0), gate.MOMENT)
    assert taken.any() and float(metrics["taken"]) > 0
    assert float(found) == pytest.approx(loss_by_hand(lm, batch, taken), rel=1e-4)


def test_every_number_of_tokens_is_taken_equally_often(monkeypatch):
    """Of answers of four: none, one, ... four, a fifth each; 4 s.e. of 4,000 texts is 0.026."""
    seen = []

    def loss(asked, params, batch, weight, taken):
        seen.append(np.asarray(taken))
        return jnp.float32(0), {}

    monkeypatch.setattr(ilm, "_loss", loss)
    made = ilm.make(ilm.Config(), Models(toys.denoiser(inserts=True).bound))
    batch = gate.batch([[7, 1, 2, 3, 4]] * 4000, prompt=1)
    made.loss({}, {}, batch, jax.random.key(0), gate.MOMENT)
    num = seen[0].sum(1)
    np.testing.assert_allclose(np.bincount(num, minlength=5) / 4000, 0.2, atol=0.026)
    which = np.unique(seen[0][num == 2][:, 1:], axis=0, return_counts=True)[1]
    assert len(which) == 6
    np.testing.assert_allclose(which / which.sum(), 1 / 6, atol=0.06)


def test_a_text_is_learned_and_written():
    """Whatever is left of it, so the loop writes it, and knows when it is whole."""
    lm = toys.denoiser(inserts=True)
    text = [1, 4, 8, 5, 9, 2, 6]
    batch = gate.batch([[3, *text]] * 8, prompt=1)
    assert gate.learns_alone("ilm", batch, mask_token=MASK)
    made = ilm.make(ilm.Config(), Models(lm.bound))
    params, values = gate.train(made, lm, batch, steps=300, lr=1e-2)
    found = made.export(params, lm.params)
    assert found.denoiser.inserts and found.denoiser.mask_token == MASK
    after = jd.api.from_params(lm.config, found.target, end_tokens=(50,))
    asked = {"temperature": 0.5, "n": 16, "max_new_tokens": 20}
    out = jd.generate(after, [[3]], method="ilm", **asked)
    # A small model is not sure of everything.
    assert out.tokens.count([*text, 50]) >= 14 and out.finish_reasons.count("stop") == 16
    assert len({tuple(steps) for steps in out.steps}) >= 14, "in orders of their own"
    assert values[-20:].mean() < 0.7 * values[:20].mean()


@pytest.mark.slow
def test_a_law_is_learned():
    """Joint laws of place and token of all that may be left of three tokens over three."""
    law = np.random.default_rng(3).dirichlet(np.full(27, 0.4))
    texts = np.random.default_rng(0).choice(27, 1024, p=law)
    rows = [[9, *np.unravel_index(text, (3, 3, 3))] for text in texts]
    shares = tuple((np.bincount(texts, minlength=27) / len(texts)).tolist())
    lm = toys.denoiser(inserts=True)
    made = ilm.make(ilm.Config(), Models(lm.bound))
    params, _ = gate.train(made, lm, gate.batch(rows, prompt=1), steps=500, lr=1e-2)
    after = jd.api.from_params(lm.config, made.export(params, lm.params).target)
    exact, distance = oracles.insertion_laws(shares, 3), {}
    for size in range(3):
        for kept in itertools.product(range(3), repeat=size):
            digits = [*(token + 1 for token in kept), *[0] * (3 - size)]
            wanted = exact[np.ravel_multi_index(digits, (4, 4, 4))][: size + 1, :3]
            scores = toys.whole(after, [9, *kept]).astype(np.float64)
            assert scores[0, MASK] < -1, "it is not whole"
            scores[:, MASK] = -np.inf
            found = np.exp(scores - np.log(np.exp(scores).sum()))
            gap = np.abs(found[:, :3] - wanted / wanted.sum()).sum() / 2
            distance[kept] = gap if wanted.sum() > 0.05 else 0.0
    assert max(distance.values()) < 0.1, distance
    assert toys.whole(after, [9, 0, 1, 2])[0, MASK] > 1


def test_a_mask_token_is_needed():
    with pytest.raises(InputError, match="mask_token is missing"):
        ilm.make(ilm.Config(), Models(toys.model().bound))
    with pytest.raises(InputError, match="mask_token=-1"):
        ilm.Config(mask_token=-1)
