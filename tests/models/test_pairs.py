"""What a token says of the slots beside it: the table against plain passes, and what it adds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.models import pairs
from tests import toys


def table(lm, reach=2):
    config = lm.config
    size, how = config.vocab_size, config.denoiser
    return pairs.asked(lm.params, target=lm.target, denoiser=how, size=size, reach=reach)


def laws(lm, token, reach):
    """Log-probabilities of the slots beside a token in a text of masks; None: of masks only."""
    width, middle = 4 * reach + 1, 2 * reach
    text = np.full(width, lm.config.denoiser.mask_token)
    if token is not None:
        text[middle] = token
    scores = np.roll(toys.whole(lm, text), int(lm.config.denoiser.shifted), axis=0)
    scores[:, lm.config.denoiser.mask_token] = -np.inf
    beside = [middle + by for by in range(-reach, reach + 1) if by]
    return np.asarray(jax.nn.log_softmax(jnp.asarray(scores)))[beside]


@pytest.mark.parametrize("parts", [{}, {"shifted": True}, {"block": 8}])
@pytest.mark.parametrize("reach", [1, 2])
def test_gains_are_those_of_plain_passes(parts, reach, monkeypatch):
    """Of a few tokens, the kept ones: what is added beyond what is added to all others."""
    monkeypatch.setattr(pairs, "KEPT", 5)
    lm = toys.denoiser(**parts)
    pairs.asked.clear_cache()
    found, plain = table(lm, reach), laws(lm, None, reach)
    assert found.tokens.shape == (lm.config.vocab_size, 2 * reach, 5)
    for token in (0, 7, lm.config.vocab_size - 1):
        law = laws(lm, token, reach)
        for slot in range(2 * reach):
            kept = np.argsort(-law[slot], kind="stable")[:5]
            assert set(found.tokens[token, slot].tolist()) == set(kept.tolist())
            others = [np.log(1 - np.exp(of[slot][kept]).sum()) for of in (law, plain)]
            with np.errstate(invalid="ignore"):  # the mask token has no probability in either
                wanted = law[slot] - plain[slot] - (others[0] - others[1])
            ours = found.gain[token, slot]
            np.testing.assert_allclose(ours, wanted[found.tokens[token, slot]], atol=1e-3)
    pairs.asked.clear_cache()


def test_a_token_adds_to_the_slots_beside_it_and_to_no_others():
    found = pairs.Pairs(
        tokens=jnp.array([[[1], [2]], [[0], [0]], [[2], [1]]]),
        gain=jnp.array([[[0.5], [0.25]], [[2.0], [4.0]], [[1.0], [8.0]]]),
    )
    scores = jnp.zeros((3, 3, 3))
    ours = pairs.added(found, scores, slot=jnp.array([1, 0, 2]), token=jnp.array([0, 1, 2]))
    wanted = np.zeros((3, 3, 3))
    wanted[0, 0, 1], wanted[0, 2, 2] = 0.5, 0.25
    wanted[1, 1, 0] = 4.0  # nothing stands before the first slot
    wanted[2, 1, 2] = 1.0  # nor behind the last
    np.testing.assert_array_equal(ours, wanted)
