"""Masks of training: who sees whom, which blocks there are, and passes over all blocks at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecode.core.masks import MaskProgram, dense
from jaxdecode.errors import InputError
from jaxdecode.models.config import Denoiser
from jaxdecode.training import denoising
from jaxdecode.training.objective import Batch
from tests import toys
from tests.training import gate

ROW = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
MASK = 60


def packed():
    """A row of two texts and padding, and a row of one text with a prompt."""
    tokens = np.asarray([[3, 1, 4, 1, 5, 9, 2, 6, 0, 0], [5, 3, 5, 8, 9, 7, 9, 3, 2, 3]])
    positions = np.asarray([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0], np.arange(10)])
    segments = np.asarray([[1, 1, 1, 1, 1, 2, 2, 2, 0, 0], np.ones(10)])
    weight = (segments > 0) & ((positions >= 3) | (np.arange(2)[:, None] == 0))
    parts = {"tokens": tokens, "positions": positions, "segments": segments}
    ids = {name: jnp.asarray(part, jnp.int32) for name, part in parts.items()}
    return Batch(**ids, weight=jnp.asarray(weight, jnp.float32))


def seen(program):
    width = program.positions.shape[1]
    return np.asarray(dense(program, num_slots=0, window=0)[1])[0].reshape(width, width)


@pytest.mark.parametrize(("width", "block", "count"), [(8, 4, 96), (12, 3, 180), (8, 1, 72)])
def test_pairs_that_see_each_other(width, block, count):
    batch = gate.batch([list(range(width))])
    found = seen(denoising.twice(batch, block))
    assert found.sum() == count == width * block + width**2
    for q in range(2 * width):
        for k in range(2 * width):
            (qh, qp), (kh, kp) = divmod(q, width), divmod(k, width)
            qb, kb = qp // block, kp // block
            wanted = {
                (0, 0): qb == kb, (0, 1): qb > kb, (1, 0): False, (1, 1): qb >= kb
            }[qh, kh]  # fmt: skip
            assert found[q, k] == wanted


def test_blocks_of_any_length():
    batch = gate.batch([list(range(6))])
    blocks = jnp.asarray([[0, 0, 0, 1, 2, 2]])
    found = seen(denoising.twice(batch, 1, blocks))
    sizes = np.asarray([3, 3, 3, 1, 2, 2])
    assert found[:6, :6].sum() == sizes.sum()
    np.testing.assert_array_equal(found[:6, 6:].sum(1), [0, 0, 0, 3, 4, 4])
    np.testing.assert_array_equal(found[6:, 6:].sum(1), [3, 3, 3, 4, 6, 6])
    assert not found[6:, :6].any()
    alone = MaskProgram(
        cached=jnp.zeros(1, jnp.int32), positions=batch.positions, num_new=jnp.asarray([6]),
        rule="block_causal", blocks=blocks,
    )  # fmt: skip
    np.testing.assert_array_equal(seen(alone), found[6:, 6:])


def test_packed_texts_do_not_see_each_other():
    found = np.asarray(dense(denoising.twice(packed(), 2), num_slots=0, window=0)[1])[0]
    segments = np.tile(np.asarray(packed().segments[0]), 2)
    assert not found[segments[:, None] != segments[None, :]].any()


def test_groups_and_padding():
    batch = packed()
    np.testing.assert_array_equal(
        denoising.groups(batch), [[0, 0, 0, 0, 0, 1, 1, 1, 2, 2], [0] * 10]
    )
    # Padding has position 0 everywhere.
    blocks = np.asarray(denoising.groups(batch, 2))
    np.testing.assert_array_equal(blocks[0, :8], [0, 0, 1, 1, 2, 3, 3, 4])
    np.testing.assert_array_equal(blocks[1], np.arange(10) // 2)
    whole = denoising.filled(batch, 7)
    np.testing.assert_array_equal(whole.tokens[0, 5:], [9, 2, 6, 7, 7])
    np.testing.assert_array_equal(whole.positions[0], [0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(whole.segments[0], [1] * 5 + [2] * 5)
    np.testing.assert_array_equal(whole.weight[0, 8:], [1, 1])
    np.testing.assert_array_equal(whole.weight[1], batch.weight[1])
    assert denoising.filled(batch, None) is batch


def test_only_what_is_learned_is_masked():
    batch = packed()
    keys = jax.random.split(jax.random.key(0), 50)
    rate = jnp.ones(batch.tokens.shape)
    for shifted in (False, True):
        weight = denoising.learned(batch, shifted)
        drawn = jax.vmap(lambda key, w=weight: denoising.drawn(key, rate, w))(keys)
        np.testing.assert_array_equal(drawn.all(0), np.asarray(weight) > 0)
    assert denoising.learned(batch, True)[0, 0] == 0


@pytest.mark.parametrize("shifted", [False, True])
def test_one_pass_over_all_blocks_is_a_pass_per_block(shifted):
    lm, block = toys.model(), 4
    asked = denoising.setting(lm.bound, MASK, shifted, block)
    batch = gate.batch([ROW])
    masked = jnp.asarray([[i % 3 != 1 for i in range(len(ROW))]])
    found = jax.jit(lambda p: denoising.states(asked, p, batch, masked))(lm.params)[0]

    @jax.jit
    def alone(tokens, num):
        program = MaskProgram(
            cached=jnp.zeros(1, jnp.int32), positions=jnp.arange(len(ROW))[None],
            num_new=num, rule="block_causal", block=block,
        )  # fmt: skip
        return lm.bound.target.forward(lm.params, tokens, program, None).hidden[0]

    wanted = []
    for start in range(0, len(ROW), block):
        # The blocks before are clean; the shift reads the clean place before a block.
        end = start + block
        noisy = np.where(masked[0], MASK, ROW)
        tokens = [*ROW[:start], *noisy[start:end], *ROW[end:]]
        hidden = alone(jnp.asarray([tokens], jnp.int32), jnp.asarray([end]))
        places = np.arange(start, end) - shifted
        wanted.append(hidden[np.maximum(places, 0)])
    wanted = np.concatenate(wanted)
    np.testing.assert_allclose(found[shifted:], wanted[shifted:], atol=1e-5)


def test_the_mask_token_has_to_be_in_the_vocabulary():
    lm = toys.model()
    with pytest.raises(InputError, match="objective.mask_token is missing"):
        denoising.setting(lm.bound, None, False, 0)
    with pytest.raises(InputError, match="mask_token=9999 is outside the vocabulary"):
        denoising.setting(lm.bound, 9999, False, 0)
    made = denoising.setting(toys.denoiser().bound, None, True, 4)
    assert made.denoiser == Denoiser(mask_token=60, shifted=True, block=4)


def perfect(size=2):
    """A model of two equal tokens: a place whose neighbour is decided takes its token."""
    lm = toys.denoiser()
    mask = lm.config.denoiser.mask_token

    def forward(params, tokens, program, cache):
        del params, program, cache
        other = tokens[:, ::-1]
        law = jnp.log(jnp.full((*tokens.shape, lm.config.vocab_size), 1e-9))
        known = jnp.where((other == mask)[..., None], jnp.log(1 / size), -20.0)
        law = law.at[..., :size].set(known)
        sure = jax.nn.one_hot(other, lm.config.vocab_size) > 0
        law = jnp.where(sure & (other != mask)[..., None], 0.0, law)
        return type("Output", (), {"hidden": law})()

    target = lm.bound.target._replace(forward=forward, logits=lambda params, hidden: hidden)
    return lm.bound._replace(target=target)


def twin_rows(num):
    rng = np.random.default_rng(0)
    return gate.batch(np.repeat(rng.integers(0, 2, (num, 1)), 2, axis=1).tolist())


def test_likelihood_by_a_drawn_number_of_masks():
    model = perfect()
    asked = denoising.setting(model, None, False, 0)
    draw = jax.jit(lambda key: denoising.likelihood(asked, {}, twin_rows(64), key))
    values = np.stack([draw(key) for key in jax.random.split(jax.random.key(1), 200)])
    means = values.mean(1)
    error = means.std() / len(means) ** 0.5
    # k = 1: no error, k = 2: 2 ln 2; so each is right half of the time.
    whole = values > 1
    np.testing.assert_allclose(values[whole], 2 * np.log(2), rtol=1e-4)
    np.testing.assert_allclose(values[~whole], 0, atol=1e-4)
    assert abs(means.mean() - np.log(2)) <= max(3 * error, 1e-4)
