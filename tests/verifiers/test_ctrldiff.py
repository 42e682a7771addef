"""Guidance by a classifier: against all texts of a small vocabulary, and in the loop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecode as jd
from jaxdecode.convert import heads as head_files
from jaxdecode.convert.heads import Heads
from jaxdecode.core.protocols import HeadSpec
from jaxdecode.errors import InputError
from jaxdecode.heads import ctrldiff as heads
from jaxdecode.verifiers import ctrldiff
from tests import toys
from tests.training import gate
from tests.verifiers.test_energy import shown

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
SIZE, SLOTS = 8, 4
RNG = np.random.default_rng(2)
LAWS = RNG.dirichlet(np.ones(SIZE), SLOTS)
TABLE = RNG.normal(size=(SIZE, 2)) * 2
TEXTS = np.asarray(list(itertools.product(range(SIZE), repeat=SLOTS)))


def guided(strength, wanted, sign=1.0):
    """The law of every slot, with the classifier's pull."""
    params = {"table": jnp.asarray(TABLE, jnp.float32)}
    mean = jnp.asarray((LAWS @ TABLE).mean(0), jnp.float32)
    pull = np.asarray(heads.pull(params, mean, jnp.float32(SLOTS), wanted), np.float64)
    laws = LAWS * np.exp(sign * strength * pull)
    return laws / laws.sum(-1, keepdims=True)


def exact(strength, wanted):
    """Probability of all texts, each weighed by what the classifier says of it."""
    scores = TABLE[TEXTS].mean(1)
    of_class = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    law = LAWS[range(SLOTS), TEXTS].prod(-1) * np.exp(strength * of_class[:, wanted])
    return law / law.sum()


def divergence(law, laws):
    product = laws[range(SLOTS), TEXTS].prod(-1)
    return float((law * np.log(law / product)).sum())


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_it_is_near_the_law_of_all_texts_weighed_exactly(strength, wanted):
    wished = exact(strength, wanted)
    near = divergence(wished, guided(strength, wanted))
    assert near < 0.05
    # Not because nothing has to move: neither no guidance nor the other way does as well.
    assert near < 0.2 * divergence(wished, LAWS)
    assert near < 0.1 * divergence(wished, guided(strength, wanted, sign=-1.0))


@pytest.mark.slow
def test_the_pull_is_the_slope_of_the_classifier_by_finite_differences():
    lm = toys.denoiser()
    params = gate.random_heads("ctrldiff", {"num_hidden": 5, "num_classes": 3}, lm).params
    mean = jnp.asarray(np.random.default_rng(0).normal(size=5), jnp.float32)
    found = np.asarray(heads.pull(params, mean, jnp.float32(7), 2))
    step = 1e-2
    for token in (0, 17, 60):
        ends = [mean + way * step * params["table"][token] / 7 for way in (1, -1)]
        high, low = (float(heads.log_probs(params, end)[2]) for end in ends)
        assert found[token] == pytest.approx((high - low) / (2 * step), abs=1e-3)


def even_tokens(weight=4.0):
    """A classifier: class 1 is texts of even tokens; of odd ones with a weight below 0."""
    lm = toys.denoiser()
    table = np.zeros((61, 2), np.float32)
    table[::2, 1] = weight
    spec = HeadSpec("ctrldiff", head_files.shape_of("ctrldiff", {"num_hidden": 0}))
    return Heads(
        spec=spec,
        params={"table": jnp.asarray(table)},
        target=head_files.target_of(lm.config, lm.name),
    )


def generate(**asked):
    usual = {"method": "ctrldiff", "max_new_tokens": 16, "block_length": 8, "steps": 4}
    usual |= {"heads": even_tokens(), "attribute": 1, "temperature": 1.0, "seed": 3}
    return jd.generate(toys.denoiser(), PROMPTS, **(usual | asked))


def even_share(**asked):
    out = generate(n=16, **asked)
    return np.mean([token % 2 == 0 for row in out.tokens for token in row])


def test_texts_lean_to_what_the_classifier_wants():
    more, none, less = (
        even_share(strength=32.0, heads=even_tokens(weight)) for weight in (4.0, 0.0, -4.0)
    )
    assert less < none - 0.1 < none + 0.1 < more


@pytest.mark.slow
def test_the_attribute_is_the_more_frequent_the_stronger_the_pull():
    shares = [even_share(strength=strength) for strength in (0.0, 2.0, 8.0, 32.0)]
    assert shares == sorted(shares) and shares[-1] - shares[0] > 0.15, shares
    assert even_share(strength=32.0, attribute=0) < shares[0]


@pytest.mark.slow
def test_no_strength_is_the_plain_sampler_and_what_is_decided_stays():
    asked = {"max_new_tokens": 16, "block_length": 8, "steps": 4, "temperature": 1.0, "seed": 3}
    plain = jd.generate(toys.denoiser(), PROMPTS, method="mdlm", **asked)
    ours = generate(strength=0.0)
    assert (ours.tokens, ours.steps) == (plain.tokens, plain.steps)
    template = {"tokens": [3, 1, None, None, 5, None, 9]}
    asked = {"heads": even_tokens(), "strength": 30.0, "temperature": 1.0, "block_length": 8}
    out = jd.infill(toys.denoiser(), template, method="ctrldiff", attribute=1, **asked)
    assert [out.tokens[0][i] for i in (0, 1, 4, 6)] == [3, 1, 5, 9]


def test_scores_of_the_loop_are_those_of_all_that_is_known_so_far():
    """One row whose block is partly decided: what is added, in NumPy."""
    row = [3, 1, 4, 7, 5, 60, 60, 60, 0]
    open = np.asarray([0, 0, 0, 0, 0, 1, 1, 1, 1], bool)
    canvas, window = shown(row, open, start=4, width=4)
    canvas = toys.dataclasses.replace(canvas, commit_step=canvas.commit_step.at[:, 3:5].set(0))
    window = toys.dataclasses.replace(
        window, open=jnp.asarray([[False, True, True, False]]), mask_token=60
    )
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 61))
    table = rng.normal(size=(61, 3))
    params = {"table": jnp.asarray(table, jnp.float32)}
    one = jax.tree.map(lambda leaf: leaf[0], (canvas, window))
    found = ctrldiff._lean(2, params, *one, jnp.asarray(logits, jnp.float32))
    law = np.exp(logits)
    law[:, 60] = 0
    law /= law.sum(-1, keepdims=True)
    mean = (table[7] + table[5] + law[1] @ table + law[2] @ table) / 4
    odds = np.exp(mean) / np.exp(mean).sum()
    slope = (np.arange(3) == 2) - odds
    np.testing.assert_allclose(found, table @ slope / 4, atol=1e-5)


def test_what_cannot_be_done_is_refused():
    with pytest.raises(InputError, match="attribute=2 is not known: .* 2 classes apart, 0 to 1"):
        generate(attribute=2)
    for wrong in ({"strength": -1.0}, {"attribute": -1}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
            ctrldiff.Config(**wrong)
    with pytest.raises(InputError, match="num_classes="):
        heads.Shape(num_classes=1)
