"""Where a text is taken from: one block, known before it, undecided after it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.training import denoising, places, replays
from tests import toys
from tests.training.test_denoising import packed


@pytest.mark.parametrize(
    "parts", [{}, pytest.param({"block": 4, "shifted": True}, marks=pytest.mark.slow)]
)
def test_every_text_gives_one_block_with_all_before_it_known(parts):
    batch = packed()
    asked = denoising.own_setting(toys.denoiser(**parts).bound)
    laid = replays.blocks(asked, batch, 4)
    draw = jax.jit(lambda key: places.draw(asked, batch, laid, key))
    learned = np.asarray(laid.learned)
    shares, blocks = [], set()
    for seed in range(30):
        inside, open, behind = (np.asarray(x) for x in draw(jax.random.key(seed)))
        assert not (open & ~inside).any() and not (open & ~learned).any()
        for row in range(len(learned)):
            for text in set(batch.segments[row].tolist()) - {0}:
                own = (np.asarray(batch.segments[row]) == text) & learned[row]
                if not own.any():
                    continue
                numbers = set(np.asarray(laid.number[row])[inside[row] & own].tolist())
                assert len(numbers) == 1
                (number,) = numbers
                later = own & (np.asarray(laid.number[row]) > number)
                np.testing.assert_array_equal(behind[row] & own, later)
                blocks.add((row, text, number))
        shares.append(open.sum() / (inside & learned).sum())
    assert 0.4 < np.mean(shares) < 0.6 and len(blocks) > len(learned)


def test_tokens_of_no_text_are_never_taken():
    batch = packed()
    asked = denoising.own_setting(toys.denoiser().bound)
    laid = replays.blocks(asked, batch, 4)
    place = places.draw(asked, batch, laid, jax.random.key(0))
    nothing = jnp.asarray(batch.segments) == 0
    assert not any(bool((part & nothing).any()) for part in place)
