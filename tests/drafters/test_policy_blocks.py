"""Blocks of chosen lengths: one length is fixed blocks, and every row chooses for itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import Heads
from jaxdecode.core.protocols import HeadSpec
from jaxdecode.errors import InputError
from jaxdecode.heads import ctrldiff_blocks as heads
from jaxdecode.training import denoising
from jaxdecode.training.objectives import ctrldiff_blocks
from tests import toys
from tests.training import gate

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
SIZES, STEPS, NEW = (2, 4, 8), 3, 21
KIND = "ctrldiff_blocks"


def always(number):
    """A policy that chooses one size, whatever it reads."""
    spec = HeadSpec(KIND, head_files.shape_of(KIND, {"sizes": SIZES}))
    lm = toys.denoiser()
    params = heads.init(spec.shape, lm.config, jax.random.key(0), None)
    bias = jnp.zeros(len(SIZES)).at[number].set(5.0)
    params["Dense_1"] = params["Dense_1"] | {"bias": bias}
    return Heads(spec=spec, params=params, target=head_files.target_of(lm.config, "toy"))


def look(lm, given, prompts):
    """What the policy reads in training where answers to these prompts begin."""
    rows = jax.tree.map(jnp.asarray, gate.batch([p + [0] * NEW for p in prompts], width=40))
    place = jnp.asarray([len(prompt) for prompt in prompts])
    counts = (rows.segments > 0) & (rows.positions >= place[:, None])
    batch = dataclasses.replace(rows, weight=counts.astype(jnp.float32))
    asked = denoising.own_setting(lm.bound)
    return ctrldiff_blocks.look(given.spec.shape, asked, lm.params, batch, place)


def undecided(prompts):
    """A random policy that finds each size as good as the others on the mean of what it reads."""
    lm = toys.denoiser()
    given = gate.random_heads(KIND, {"sizes": SIZES}, lm)
    law = heads.log_probs(given.spec.shape, given.params, look(lm, given, prompts))
    last = given.params["Dense_1"]
    bias = last["bias"] - law.mean(0)
    return Heads(
        spec=given.spec,
        params=given.params | {"Dense_1": last | {"bias": bias}},
        target=given.target,
    )


def first_length(steps):
    """Of a text's first block, by the slots that its first pass decides."""
    return {-(-size // STEPS): size for size in SIZES}[steps.count(0)]


@pytest.mark.parametrize(
    ("reuse", "temperature", "number"),
    [
        ("none", 0.0, 0),
        ("none", 0.0, 1),
        ("none", 0.9, 2),
        ("dual", 0.9, 1),
        pytest.param("prefix", 0.0, 1, marks=pytest.mark.slow),
    ],
)
def test_one_size_is_fixed_blocks(reuse, temperature, number):
    lm, asked = toys.denoiser(), dict(steps=STEPS, max_new_tokens=NEW, temperature=temperature)
    asked |= dict(reuse=reuse, seed=2)
    ours = jd.generate(lm, PROMPTS, method=KIND, heads=always(number), **asked)
    theirs, other = (
        jd.generate(lm, PROMPTS, method="llada", block_length=SIZES[i], **asked)
        for i in (number, (number + 1) % len(SIZES))
    )
    assert ours.tokens == theirs.tokens and ours.steps == theirs.steps
    assert ours.tokens != other.tokens, "sizes matter here"
    for mine, fixed in zip(ours.stats, theirs.stats, strict=True):
        assert (mine.nfe, mine.tokens_forwarded) == (fixed.nfe, fixed.tokens_forwarded)
    alone = jd.generate(lm, PROMPTS[:1], method=KIND, heads=always(number), **asked)
    assert alone.tokens == ours.tokens[:1]


def test_what_is_given_is_stepped_over_as_with_fixed_blocks():
    row = {"tokens": [3, None, None, 9, 9, None, None, None, None, 4, None, 7, None, None, 1]}
    ours = jd.infill(toys.denoiser(), row, method=KIND, heads=always(1), steps=2, reuse="dual")
    asked = dict(block_length=SIZES[1], steps=2, reuse="dual")
    assert ours.tokens == jd.infill(toys.denoiser(), row, method="llada", **asked).tokens


def test_every_row_chooses_for_itself_what_training_shows():
    """The first block has the size that the policy takes where training looks at this place."""
    lm = toys.denoiser()
    prompts = [*PROMPTS, *([i, 2 * i, i + 7] for i in range(1, 9))]
    given = undecided(prompts)
    asked = dict(method=KIND, heads=given, steps=STEPS, max_new_tokens=NEW)
    out = jd.generate(lm, prompts, **asked)
    law = heads.log_probs(given.spec.shape, given.params, look(lm, given, prompts))
    first = [first_length(steps) for steps in out.steps]
    assert first == [SIZES[i] for i in np.argmax(law, -1)]
    assert {*first} == {*SIZES}
    for i in (0, 2):
        alone = jd.generate(lm, [prompts[i]], **asked)
        assert alone.tokens[0] == out.tokens[i] and alone.steps[0] == out.steps[i]


def test_what_need_not_be_filled_is_sure():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    found = np.asarray(heads.shown(scores, jnp.asarray([True, False, True])))
    law = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    wanted = np.stack([law.max(-1), -(law * np.log(law)).sum(-1)], -1)
    np.testing.assert_allclose(found[[0, 2]], wanted[[0, 2]], rtol=1e-5)
    assert found[1].tolist() == [1.0, 0.0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="blocks of 8 tokens, which cannot end elsewhere"):
        lm = toys.denoiser(block=8)
        jd.generate(lm, PROMPTS, method=KIND, heads=always(1), max_new_tokens=4)
    with pytest.raises(InputError, match="option 'block_length' is not known"):
        asked = dict(heads=always(1), max_new_tokens=4, block_length=4)
        jd.generate(toys.denoiser(), PROMPTS, method=KIND, **asked)
    with pytest.raises(InputError, match="reuse='block' needs a model whose blocks"):
        asked = dict(heads=always(1), max_new_tokens=4, reuse="block")
        jd.generate(toys.denoiser(), PROMPTS, method=KIND, **asked)
    with pytest.raises(InputError, match="needs trained heads of kind 'ctrldiff_blocks'"):
        jd.generate(toys.denoiser(), PROMPTS, method=KIND, max_new_tokens=4)
    for sizes in ((), (8, 4), (4, 4), [4, 8]):
        with pytest.raises(InputError, match="sizes="):
            heads.Shape(sizes=sizes)
    with pytest.raises(InputError, match="num_hidden="):
        heads.Shape(num_hidden=0)
